//! The embeddable brain of queen-rbee.
