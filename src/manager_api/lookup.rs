//! What an answer of the agent lookup means. Pure; called by the client.
//!
//! Only one of the two known servers has the endpoint, and it answers "no such device" with the code of an internal
//! error, told apart by its message alone (`reference: Manager API, agent by MAC`).

use super::envelope::Envelope;
use super::verdict::{Answer, BodyEnd};

/// The longest agent id the server can hold is 32 characters; more room costs nothing.
const LONGEST_ID: usize = 64;

/// What is known of a device's agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AgentLookup {
    /// Its agent.
    Found(String),
    /// The server says that there is none: worth remembering.
    None,
    /// This server has no such endpoint: do not ask again.
    NoEndpoint,
    /// No clear answer: ask again later.
    Failed {
        /// Why, at most 300 characters.
        reason: String,
    },
}

/// Reads the answer of `GET {url}/agent/device/{mac}/agent-id`.
pub(super) fn from_answer(answer: &Answer<'_>) -> AgentLookup {
    let failed = |reason: String| AgentLookup::Failed { reason };
    match answer.status {
        200 => {}
        404 | 405 => return AgentLookup::NoEndpoint,
        status => return failed(format!("HTTP {status}")),
    }
    if answer.end != BodyEnd::Complete {
        return failed("the answer was cut off or too long".to_owned());
    }
    let Ok(envelope) = Envelope::read(answer.body) else {
        return failed("HTTP 200 without a JSON object".to_owned());
    };
    match envelope.code() {
        Some(0) => match serde_json::from_str::<Option<String>>(envelope.data()) {
            Ok(None) => AgentLookup::None,
            Ok(Some(id)) => agent(&id),
            Err(_) => failed("code 0 without an agent id".to_owned()),
        },
        Some(10041 | 10042 | 10053) => AgentLookup::None,
        // The filter for secrets speaks of the secret (密钥); anything else with 401 is the filter of the path's absence.
        Some(401) if envelope.message().contains("密钥") => failed("the server refuses the secret (code 401)".to_owned()),
        Some(401 | 404) => AgentLookup::NoEndpoint,
        Some(500) if says_none(&envelope.message()) => AgentLookup::None,
        Some(code) => failed(format!("code {code}")),
        None => failed("the answer has no integer code".to_owned()),
    }
}

fn agent(id: &str) -> AgentLookup {
    let id = id.trim();
    if id.is_empty() {
        AgentLookup::None
    } else if id.len() > LONGEST_ID || !id.bytes().all(|b| b.is_ascii_graphic()) {
        AgentLookup::Failed { reason: "the agent id is no id".to_owned() }
    } else {
        AgentLookup::Found(id.to_owned())
    }
}

fn says_none(message: &str) -> bool {
    message.starts_with("Device not found") || message.starts_with("No agent associated")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(status: u16, body: &str) -> AgentLookup {
        from_answer(&Answer { status, body: body.as_bytes(), end: BodyEnd::Complete, retry_after: None })
    }

    #[test]
    fn an_agent_is_found_or_there_is_none() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(on(200, &format!(r#"{{"code":0,"data":"{id}"}}"#)), AgentLookup::Found(id.to_owned()));
        for body in [
            r#"{"code":0,"data":null}"#,
            r#"{"code":0}"#,
            r#"{"code":0,"data":""}"#,
            r#"{"code":10041}"#,
            r#"{"code":500,"msg":"Device not found for MAC address: 6825ddba3978"}"#,
            r#"{"code":500,"msg":"No agent associated with device: 6825ddba3978"}"#,
        ] {
            assert_eq!(on(200, body), AgentLookup::None, "{body}");
        }
    }

    #[test]
    fn a_server_without_the_endpoint_is_told_from_a_wrong_secret() {
        assert_eq!(on(404, ""), AgentLookup::NoEndpoint);
        assert_eq!(on(200, r#"{"code":401,"msg":"未授权"}"#), AgentLookup::NoEndpoint);
        assert!(matches!(on(200, r#"{"code":401,"msg":"无效的服务器密钥"}"#), AgentLookup::Failed { .. }));
    }

    #[test]
    fn no_clear_answer_is_no_answer() {
        for (status, body) in [
            (200, r#"{"code":500,"msg":"Internal server error"}"#),
            (200, "<html>"),
            (200, r#"{"code":0,"data":7}"#),
            (200, r#"{"code":0,"data":"two words"}"#),
            (200, r#"{"code":0.0,"data":"x"}"#),
            (503, ""),
            (401, ""),
        ] {
            assert!(matches!(on(status, body), AgentLookup::Failed { .. }), "{status} {body}");
        }
        let cut = Answer { status: 200, body: br#"{"code":0,"data":"x"}"#, end: BodyEnd::Cut, retry_after: None };
        assert!(matches!(from_answer(&cut), AgentLookup::Failed { .. }));
    }
}
