//! Which session a line belongs to: the one it names, completed by the one its connection is bound to. Pure.

use std::sync::Arc;

use crate::protocol::{Refusal, RefusalCode, SessionIdentity, Target};
use crate::session::SessionRef;

/// What `session_start` bound a connection to.
pub(super) struct Bound {
    pub(super) identity: SessionIdentity,
    pub(super) session: SessionRef,
    pub(super) stream: Option<Arc<str>>,
    /// Whether acks are wanted, when the producer said so.
    pub(super) ack: Option<bool>,
}

/// The session of a line.
///
/// # Errors
/// `not_bound` when neither line nor connection names a whole session; `bad_field` when a numbered line names another
/// session than its stream belongs to.
pub(super) fn identity(bound: Option<&Bound>, target: &Target, seq: Option<u64>) -> Result<SessionIdentity, Refusal> {
    let stream = bound.filter(|bound| bound.stream.is_some());
    resolve(bound.map(|bound| &bound.identity), stream.is_some(), target, seq)
}

fn resolve(
    bound: Option<&SessionIdentity>,
    has_stream: bool,
    target: &Target,
    seq: Option<u64>,
) -> Result<SessionIdentity, Refusal> {
    let mac = target.mac.or_else(|| {
        let same_session = |bound: &&SessionIdentity| target.session_id.as_ref().is_none_or(|id| *id == bound.session_id);
        bound.filter(same_session).map(|bound| bound.mac)
    });
    let session_id = target.session_id.clone().or_else(|| {
        let same_device = |bound: &&SessionIdentity| target.mac.is_none_or(|mac| mac == bound.mac);
        bound.filter(same_device).map(|bound| bound.session_id.clone())
    });
    let (Some(mac), Some(session_id)) = (mac, session_id) else {
        let message = "the line names no session and the connection is bound to none (send session_start first, or give \
                       mac_address and session_id)";
        return Err(Refusal { code: RefusalCode::NotBound, field: None, message: message.into(), seq });
    };
    let identity = SessionIdentity { mac, session_id };
    if has_stream && seq.is_some() && bound.is_some_and(|bound| *bound != identity) {
        let message =
            "a numbered line names another session than its stream belongs to (leave out seq, or use a stream of its own)";
        let field = Some("session_id".into());
        return Err(Refusal { code: RefusalCode::BadField, field, message: message.into(), seq });
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{MacAddress, SessionId};

    const MAC: MacAddress = MacAddress::from_octets([1; 6]);
    const OTHER_MAC: MacAddress = MacAddress::from_octets([2; 6]);

    fn session(mac: MacAddress, id: &str) -> SessionIdentity {
        SessionIdentity { mac, session_id: SessionId::new(id).unwrap() }
    }

    fn target(mac: Option<MacAddress>, id: Option<&str>) -> Target {
        Target { mac, session_id: id.map(|id| SessionId::new(id).unwrap()) }
    }

    #[test]
    fn a_line_is_completed_by_what_its_connection_is_bound_to() {
        let bound = session(MAC, "a");
        let resolved = |mac, id| resolve(Some(&bound), true, &target(mac, id), None).ok();
        assert_eq!(resolved(None, None), Some(session(MAC, "a")));
        assert_eq!(resolved(None, Some("a")), Some(session(MAC, "a")));
        assert_eq!(resolved(Some(MAC), None), Some(session(MAC, "a")));
        assert_eq!(resolved(Some(OTHER_MAC), Some("b")), Some(session(OTHER_MAC, "b")));
        assert_eq!(resolved(None, Some("b")), None, "half of another session is no session");
        assert_eq!(resolved(Some(OTHER_MAC), None), None);
    }

    #[test]
    fn a_line_that_names_half_a_session_on_an_unbound_connection_is_not_bound() {
        for half in [target(None, None), target(Some(MAC), None), target(None, Some("a"))] {
            assert_eq!(
                resolve(None, false, &half, Some(3)).map_err(|refusal| (refusal.code, refusal.seq)),
                Err((RefusalCode::NotBound, Some(3)))
            );
        }
    }

    #[test]
    fn a_numbered_line_stays_with_the_session_of_its_stream() {
        let (bound, other) = (session(MAC, "a"), target(Some(MAC), Some("b")));
        assert!(resolve(Some(&bound), true, &other, None).is_ok());
        assert!(resolve(Some(&bound), false, &other, Some(1)).is_ok());
        let refusal = resolve(Some(&bound), true, &other, Some(1)).unwrap_err();
        assert_eq!((refusal.code, refusal.field.as_deref()), (RefusalCode::BadField, Some("session_id")));
    }
}
