//! Finding what was said, in any script.
//!
//! Promises: a search finds what is stored, indexed or not: rows above the index's watermark are read one by one; the
//! index is a file of its own (`search.db`), fed in the background, so it never holds the store's writer up, and a
//! damaged one, or one of another store or of an older copy of it, is made anew.
//! Refuses: to be a second truth. What it names is read from the store, and checked there.

pub mod index;
pub mod query;
pub mod words;

pub use self::index::SearchIndex;
pub use self::query::Query;
