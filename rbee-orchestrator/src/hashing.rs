//! The hash maps of what each request looks up again and again.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

/// A map by names that the queen, her hives or her administrators have given. Its hash takes a
/// fraction of the standard one's time, and withstands less: what clients may fill with keys of their
/// own choice stays in the standard map.
pub(crate) type IdMap<K, V> = HashMap<K, V, RandomState>;

/// A set of such names.
pub(crate) type IdSet<K> = HashSet<K, RandomState>;
