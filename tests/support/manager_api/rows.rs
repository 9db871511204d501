//! The SQL of the stand-in: what the Manager API's mappers do, and what tests read back.

use mysql::prelude::Queryable;
use mysql::{TxOpts, params};

use super::Report;
use crate::support::mariadb::Database;

/// One stored message, as a test reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The auto-increment key: the order of storing.
    pub id: u64,
    /// `mac_address`
    pub mac: String,
    /// `agent_id`
    pub agent: String,
    /// `session_id`
    pub session: String,
    /// 1 the user, 2 the agent, 3 a tool.
    pub chat_type: i8,
    /// The text.
    pub content: String,
    /// The recording, where one was stored.
    pub audio: Option<Vec<u8>>,
    /// `created_at` in milliseconds since the epoch.
    pub created_at_ms: i64,
}

/// The agents of the devices with this address: by the exact string (collation: any case), or by its digits alone.
pub fn agents_of(database: &Database, mac: &str, exact: bool) -> mysql::Result<Vec<Option<String>>> {
    let matching = if exact {
        "mac_address = ?"
    } else {
        "REPLACE(REPLACE(LOWER(mac_address), ':', ''), '-', '') = REPLACE(REPLACE(LOWER(?), ':', ''), '-', '')"
    };
    database.connection()?.exec(format!("SELECT agent_id FROM ai_device WHERE {matching}"), (mac,))
}

/// `chat_history_conf` of an agent.
pub fn history_conf(database: &Database, agent: &str) -> mysql::Result<Option<i8>> {
    database.connection()?.exec_first("SELECT chat_history_conf FROM ai_agent WHERE id = ?", (agent,))
}

/// Stores a message and its audio in one transaction; the row's id.
pub fn insert(database: &Database, report: &Report, agent: &str, audio: Option<&[u8]>, created_at_ms: i64) -> mysql::Result<u64> {
    let mut connection = database.connection()?;
    let mut transaction = connection.start_transaction(TxOpts::default())?;
    let audio_id = audio.map(|_| uuid::Uuid::now_v7().simple().to_string());
    if let (Some(audio), Some(id)) = (audio, &audio_id) {
        transaction.exec_drop("INSERT INTO ai_agent_chat_audio (id, audio) VALUES (?, ?)", (id, audio))?;
    }
    transaction.exec_drop(
        "INSERT INTO ai_agent_chat_history (mac_address, agent_id, session_id, chat_type, content, audio_id, created_at)
         VALUES (:mac, :agent, :session, :chat_type, :content, :audio_id, :created_at)",
        params! {
            "mac" => &report.mac_address,
            "agent" => agent,
            "session" => &report.session_id,
            "chat_type" => report.chat_type,
            "content" => &report.content,
            "audio_id" => audio_id,
            "created_at" => datetime(created_at_ms),
        },
    )?;
    let id = transaction.last_insert_id().unwrap_or_default();
    transaction.commit()?;
    Ok(id)
}

/// The rows of one session, or all of them, in the order of storing.
pub fn select(database: &Database, session_id: Option<&str>) -> Vec<Row> {
    type Columns = (u64, String, String, String, i8, String, Option<Vec<u8>>, i64);
    let mut connection = database.connection().expect("MariaDB answers");
    let found: Vec<Columns> = connection
        .exec(
            "SELECT h.id, h.mac_address, h.agent_id, h.session_id, h.chat_type, h.content, a.audio,
                    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', h.created_at) DIV 1000
             FROM ai_agent_chat_history h LEFT JOIN ai_agent_chat_audio a ON a.id = h.audio_id
             WHERE :session IS NULL OR h.session_id = :session ORDER BY h.id",
            params! { "session" => session_id },
        )
        .expect("select");
    found
        .into_iter()
        .map(|(id, mac, agent, session, chat_type, content, audio, created_at_ms)| Row {
            id,
            mac,
            agent,
            session,
            chat_type,
            content,
            audio,
            created_at_ms,
        })
        .collect()
}

/// How many rows there are.
pub fn count(database: &Database) -> u64 {
    let mut connection = database.connection().expect("MariaDB answers");
    connection.query_first("SELECT COUNT(*) FROM ai_agent_chat_history").expect("select").unwrap_or_default()
}

/// `DATETIME(3)` text in UTC for any time at all, so that the database can refuse year 57862 itself.
fn datetime(ms: i64) -> String {
    let (days, in_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Days to civil date, by eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second, milli) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1000 % 60, in_day % 1000);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{milli:03}")
}
