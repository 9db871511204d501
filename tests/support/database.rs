//! Where things stand in the bytes of a database.

use std::io::Write;

/// As its header says.
pub fn page_bytes(database: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([database[16], database[17]]))
}

/// The page, from 1, on which a table or an index begins.
#[track_caller]
pub fn root_page(database: &[u8], name: &str) -> usize {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(database).expect("the database");
    let connection = rusqlite::Connection::open(file.path()).expect("a database");
    // No log stands beside this copy.
    connection.pragma_update(None, "locking_mode", "exclusive").expect("a lock");
    let sql = "SELECT rootpage FROM sqlite_master WHERE name = ?1";
    let page: i64 = connection.query_row(sql, [name], |row| row.get(0)).expect("its page");
    usize::try_from(page).expect("a page")
}
