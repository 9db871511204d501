//! The way in: producers connect to a Unix socket and write lines.
//!
//! Promises: the socket has its mode and group before anybody can connect; a bad line is answered, counted, and costs
//! the line, not the connection; an ack is said only after the line is settled; a producer that does not read costs a
//! bounded buffer and nothing else; long lines that are not finished yet share one memory, however many clients send some.
//! Refuses: to wait for a client, to buffer a line longer than `socket.max_line_bytes`, to replace a live socket.
//! Run by `daemon`; hands events to `session` and asks `upload` about deliveries.

mod binding;
pub mod connection;
mod flush;
pub mod lines;
pub mod listener;
pub mod long_lines;
pub mod outbox;
pub mod socket;
mod stream;
mod surroundings;

pub use listener::{Intake, Listener};
pub use socket::{ListenError, ServerSocket};
pub use surroundings::Surroundings;
