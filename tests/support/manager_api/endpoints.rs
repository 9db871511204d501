//! The answer table of the Manager API (facts §1 and §3): nearly every error is HTTP 200 with `code != 0`.

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Value, json};

use super::fault::Endpoint;
use super::http::{Request, Response};
use super::{Server, rows, xss};

/// Strings longer than this make the real server's JSON parser give up.
const MAX_JSON_STRING: usize = 20_000_000;

/// `java.util.Base64`: strict about the alphabet, indifferent to missing padding.
const JAVA_BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true),
);

/// A report as the server understood it, after its XSS filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// As sent.
    pub mac_address: String,
    /// As sent.
    pub session_id: String,
    /// A tinyint.
    pub chat_type: i8,
    /// What would be stored.
    pub content: String,
    /// Base64, as sent.
    pub audio: Option<String>,
    /// As sent; seconds or milliseconds.
    pub report_time: Option<i64>,
}

/// The usual envelope.
pub fn envelope(code: i64, message: &str, data: &Value) -> Response {
    Response::new(200, "application/json", json!({ "code": code, "msg": message, "data": data }).to_string())
}

fn success(data: &Value) -> Response {
    envelope(0, "success", data)
}

/// What every unexpected exception becomes.
pub fn server_error() -> Response {
    envelope(500, "服务器内部异常", &Value::Null)
}

fn not_logged_in() -> Response {
    envelope(401, "未授权", &Value::Null)
}

/// Which endpoint a request is for.
pub fn endpoint_of(server: &Server, request: &Request) -> Endpoint {
    let Some(path) = inside_context(server, request) else { return Endpoint::Other };
    match path {
        "/agent/chat-history/report" => Endpoint::Report,
        "/user/pub-config" if server.version.is_some() => Endpoint::PubConfig,
        _ if device_of(path).is_some() => Endpoint::AgentId,
        _ => Endpoint::Other,
    }
}

fn inside_context<'a>(server: &Server, request: &'a Request) -> Option<&'a str> {
    request.path.strip_prefix(server.context).filter(|rest| rest.starts_with('/'))
}

fn device_of(path: &str) -> Option<&str> {
    path.strip_prefix("/agent/device/")?.strip_suffix("/agent-id").filter(|mac| !mac.contains('/'))
}

/// Everything but the storing of a report.
pub fn answer(server: &Server, database: &super::Database, endpoint: Endpoint, request: &Request) -> Response {
    match endpoint {
        // The report's refusals come from `understand`.
        Endpoint::Report => server_error(),
        Endpoint::PubConfig if request.method != "GET" => server_error(),
        Endpoint::PubConfig => {
            success(&json!({ "version": server.version, "enableMobileRegister": false, "name": "manager-api", "year": "©2025" }))
        }
        Endpoint::AgentId if server.has_agent_lookup => {
            if let Err(refused) = authorised(server, request) {
                return refused;
            }
            let mac = device_of(&request.path[server.context.len()..]).unwrap_or_default();
            match rows::agents_of(database, mac, false) {
                Err(_) => envelope(500, "Internal server error", &Value::Null),
                Ok(found) => match found.as_slice() {
                    [] => envelope(500, &format!("Device not found for MAC address: {mac}"), &Value::Null),
                    [Some(agent), ..] => success(&json!(agent)),
                    [None, ..] => envelope(500, &format!("No agent associated with device: {mac}"), &Value::Null),
                },
            }
        }
        Endpoint::AgentId | Endpoint::Other if inside_context(server, request).is_some() => not_logged_in(),
        Endpoint::AgentId | Endpoint::Other => match (server.behind_nginx, request.method.as_str()) {
            (false, _) => Response::new(404, "text/html;charset=utf-8", "<!doctype html><h1>HTTP Status 404 – Not Found</h1>"),
            (true, "GET") => Response::new(200, "text/html", "<!doctype html><div id=app></div>"),
            (true, _) => Response::new(405, "text/html", "<html><body>405 Not Allowed</body></html>"),
        },
    }
}

fn authorised(server: &Server, request: &Request) -> Result<(), Response> {
    let token = request
        .header("authorization")
        .and_then(|value| value.strip_prefix("Bearer "))
        .or_else(|| request.header("secret").filter(|_| server.accepts_secret_header));
    match token {
        None | Some("") => Err(envelope(401, "服务器密钥不能为空", &Value::Null)),
        Some(token) if token == server.secret => Ok(()),
        Some(_) => Err(envelope(401, "无效的服务器密钥", &Value::Null)),
    }
}

/// From bytes to a report, as filter, parser and validator of the real server do it; or its refusal.
pub fn understand(server: &Server, request: &Request) -> Result<Report, Response> {
    authorised(server, request)?;
    if request.method != "POST" {
        return Err(server_error());
    }
    let content_type = request.header("content-type").unwrap_or_default();
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(server_error());
    }
    let text = String::from_utf8_lossy(&request.body).into_owned();
    // The filter compares the whole header: a charset parameter is enough to be left alone.
    let text = if content_type.eq_ignore_ascii_case("application/json") { xss::clean(&text) } else { text };
    let Some(Ok(Value::Object(object))) = serde_json::Deserializer::from_str(&text).into_iter::<Value>().next() else {
        return Err(server_error());
    };
    if object.values().any(|value| value.as_str().is_some_and(|text| text.chars().count() > MAX_JSON_STRING)) {
        return Err(server_error());
    }
    let text_field = |name: &str| match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(scalar @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(scalar.to_string())),
        Some(_) => Err(server_error()),
    };
    let number_field = |name: &str| match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_i64().or_else(|| number.as_f64().map(|float| float as i64))),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => text.trim().parse::<i64>().map(Some).map_err(|_| server_error()),
        Some(_) => Err(server_error()),
    };
    let mac_address = text_field("macAddress")?;
    let session_id = text_field("sessionId")?;
    let content = text_field("content")?;
    let audio = text_field("audioBase64")?;
    let report_time = number_field("reportTime")?;
    let chat_type = match number_field("chatType")? {
        None => None,
        Some(number @ -128..=255) => Some(number as u8 as i8),
        Some(_) => return Err(server_error()),
    };
    let not_blank = |field: Option<String>| field.filter(|text| text.chars().any(|character| character > ' '));
    match (not_blank(mac_address), not_blank(session_id), chat_type, not_blank(content)) {
        (Some(mac_address), Some(session_id), Some(chat_type), Some(content)) => {
            Ok(Report { mac_address, session_id, chat_type, content, audio, report_time })
        }
        _ => Err(envelope(10034, "参数不能为空", &Value::Null)),
    }
}

/// Stores a report; the answer, and the row's id when there is one.
pub fn store(server: &Server, database: &super::Database, report: &Report) -> (Response, Option<u64>) {
    let Ok(agents) = rows::agents_of(database, &report.mac_address, server.exact_mac) else { return (server_error(), None) };
    let agent = match agents.as_slice() {
        [] | [None] => return (success(&json!(false)), None),
        [Some(agent)] => agent,
        // `selectOne` throws when two devices have the same address.
        _ => return (server_error(), None),
    };
    let conf = match rows::history_conf(database, agent) {
        Err(_) => return (server_error(), None),
        Ok(None) => return (success(&json!(false)), None),
        Ok(Some(conf)) => conf,
    };
    if !matches!(conf, 1 | 2) {
        return (success(&json!(true)), None);
    }
    // Invalid base64 is caught by the server: the text is stored without audio and the answer is still true.
    let audio = report
        .audio
        .as_ref()
        .filter(|_| conf == 2)
        .and_then(|text| JAVA_BASE64.decode(text).ok())
        .filter(|audio| !audio.is_empty());
    let created_at = match report.report_time {
        None => super::now_ms(),
        Some(time) if server.milliseconds => time,
        Some(time) => time.wrapping_mul(1000),
    };
    match rows::insert(database, report, agent, audio.as_deref(), created_at) {
        Ok(id) => (success(&json!(true)), Some(id)),
        Err(_) => (server_error(), None),
    }
}
