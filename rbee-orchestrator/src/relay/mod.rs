//! Between a worker and its client: connections, event streams, and the two worker protocols.

pub(crate) mod answer;
pub(crate) mod chunk;
pub(crate) mod habits;
pub(crate) mod openai;
pub(crate) mod pool;
pub(crate) mod rbee;
pub(crate) mod redaction;
pub(crate) mod refusal;
pub(crate) mod said;
pub(crate) mod sse;
pub(crate) mod tokens;
pub(crate) mod translate;
pub(crate) mod usage;
