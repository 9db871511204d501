//! `history check`: reads every page of the store; one that is damaged is set aside and salvaged at once.

use std::io::Write;

use super::failure::Failure;
use super::hand::Hand;
use crate::config::Settings;
use crate::history::change::Request;

pub(super) fn check(settings: &Settings, out: &mut impl Write) -> Result<(), Failure> {
    let hand = Hand::find(settings)?;
    let answer = hand.request(&Request::Check);
    hand.finish();
    let answer = answer?;
    let directory = &settings.store.directory;
    if answer.salvaged == 0 {
        return Ok(writeln!(out, "{} is whole", directory.join("history.db").display())?);
    }
    let corrupt = directory.join("corrupt");
    let (saved, corrupt) = (answer.messages, corrupt.display());
    writeln!(out, "the store was damaged: it was set aside in {corrupt}, and {saved} messages were salvaged")?;
    if answer.damaged > 0 {
        let left = answer.damaged;
        return Err(Failure::Incomplete(format!(
            "{left} messages stand only there: copy them away before you delete them (chat-historyd doctor)"
        )));
    }
    Ok(())
}
