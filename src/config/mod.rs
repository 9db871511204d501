//! Typed settings from all layers, every problem at once, and secrets that cannot be printed.

pub mod secret;
pub mod settings;

pub use secret::{Secret, SecretSource};
pub use settings::{
    BackupSettings, Durability, LogFormat, LogLevel, LogSettings, ManagerApiSettings, MaxContent, OnLongContent, ReportTimeUnit,
    SessionSettings, Settings, SocketSettings, StatusSettings, StoreSettings, UploadSettings,
};
