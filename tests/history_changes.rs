//! Changes to the history from the shell: through the running daemon, or by the command itself when none runs.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::history::{
    CONVERSATION, MAC, OTHER_MAC, bytes_are_in, command, converse, fill, json_of, refusal, run, run_unread, run_with_input, text,
};
use crate::support::{Agent, Daemon, Fault, ManagerApi, Rule, Variant, eventually, oracle, soon};

const IN_TIME: Duration = Duration::from_secs(20);

fn rejected(daemon: &Daemon) -> Vec<Value> {
    json_of(daemon, &["rejected", "list", "--format", "json"]).as_array().expect("an array").clone()
}

/// A daemon whose server found two messages of a session invalid.
fn daemon_with_rejected(api: &ManagerApi) -> Daemon {
    api.register(MAC);
    let daemon = Daemon::start_for(api);
    api.fault(Fault::code(10034));
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.say(1, "यह अस्वीकार हुआ");
    agent.say(2, "and this one, too");
    agent.end();
    agent.flush("durable");
    soon("both are rejected", || daemon.metric("rejected") == 2);
    api.clear_faults();
    soon("both are listed", || rejected(&daemon).len() == 2);
    daemon
}

#[test]
fn rejected_messages_are_listed_shown_and_delivered_when_tried_again() {
    let api = ManagerApi::start(Variant::Fork);
    let daemon = daemon_with_rejected(&api);
    let list = text(&daemon, &["rejected", "list"]);
    assert!(list.contains("invalid") && list.contains("यह अस्वीकार हुआ") && list.contains(MAC), "{list}");
    let number = rejected(&daemon)[0]["number"].to_string();
    let shown = text(&daemon, &["rejected", "show", &number]);
    assert!(shown.contains("the server found the report wrong") && shown.ends_with("यह अस्वीकार हुआ\n"), "{shown}");
    assert!(refusal(&daemon, &["rejected", "show", "999"], 64).contains("no rejected message has the number 999"));
    assert!(refusal(&daemon, &["rejected", "retry", "999"], 64).contains("999"));
    assert_eq!(json_of(&daemon, &["rejected", "list", "--reason", "damaged", "--format", "json"]), json!([]));
    let said = text(&daemon, &["rejected", "retry", &number]);
    assert!(said.starts_with("1 messages are pending again: the daemon delivers them now"), "{said}");
    assert_eq!(api.wait_for_rows("s", 1)[0].content, "यह अस्वीकार हुआ");
    text(&daemon, &["rejected", "retry", "--all"]);
    let rows = api.wait_for_rows("s", 2);
    assert_eq!(rows[1].content, "and this one, too");
    soon("none is left", || rejected(&daemon).is_empty());
    oracle::check_books(&daemon);
    soon("all is delivered", || text(&daemon, &["history", "list"]).contains("2 delivered"));
}

#[test]
fn rejected_messages_are_tried_again_by_the_next_daemon_when_none_runs() {
    let api = ManagerApi::start(Variant::Fork);
    let mut daemon = daemon_with_rejected(&api);
    assert!(daemon.term(IN_TIME).success());
    let said = text(&daemon, &["rejected", "retry", "--session", "s"]);
    assert!(said.starts_with("2 messages are pending again: the daemon delivers them when it runs"), "{said}");
    daemon.start();
    assert_eq!(api.wait_for_rows("s", 2).len(), 2);
    oracle::check_books(&daemon);
}

#[test]
fn rejected_messages_are_dropped_only_when_that_is_confirmed() {
    let api = ManagerApi::start(Variant::Fork);
    let daemon = daemon_with_rejected(&api);
    assert!(refusal(&daemon, &["rejected", "drop", "--all"], 64).contains("--yes"));
    assert_eq!(rejected(&daemon).len(), 2);
    assert!(refusal(&daemon, &["rejected", "drop"], 64).contains("--all"));
    let said = text(&daemon, &["rejected", "drop", "--all", "--yes"]);
    assert!(said.starts_with("2 rejected messages were deleted"), "{said}");
    assert!(rejected(&daemon).is_empty());
    oracle::check_books(&daemon);
}

/// Marks what [`fill`] put into the store as rejected.
fn reject_filled(daemon: &Daemon) {
    let store = rusqlite::Connection::open(daemon.store().join("history.db")).expect("the database");
    let sql = "INSERT INTO rejected SELECT id, session, 'invalid', NULL, 1 FROM messages WHERE content LIKE 'filler%'";
    store.execute(sql, []).expect("the table");
}

#[test]
fn many_rejected_messages_of_one_session_are_tried_again_or_dropped_in_a_moment() {
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    assert!(daemon.term(IN_TIME).success());
    fill(&daemon, 20_000);
    for words in [["rejected", "retry", "--all"].as_slice(), &["rejected", "drop", "--all", "--yes"]] {
        reject_filled(&daemon);
        let began = std::time::Instant::now();
        let said = text(&daemon, words);
        assert!(said.starts_with("20000 "), "{said}");
        // Two seconds; most of a minute when each is looked at among all.
        assert!(began.elapsed() < IN_TIME, "{words:?}: {:?}", began.elapsed());
    }
}

#[test]
fn a_device_is_forgotten_everywhere_and_the_others_stay() {
    for running in [true, false] {
        let api = ManagerApi::start(Variant::Fork);
        api.register(MAC);
        api.register(OTHER_MAC);
        let mut daemon = Daemon::start_for(&api);
        converse(&daemon, MAC, "s1");
        converse(&daemon, MAC, "s2");
        let mut agent = Agent::connect(&daemon);
        agent.bind(MAC, "s3");
        agent.say(1, "ein Geheimnis: गुप्त बात 秘密的话");
        agent.end();
        agent.flush("durable");
        converse(&daemon, OTHER_MAC, "s1");
        for (session, count) in [("s1", 16), ("s2", 8), ("s3", 1)] {
            api.wait_for_rows(session, count);
        }
        soon("all is delivered", || daemon.metric("pending") == 0);
        soon("the backups are there", || bytes_are_in(&daemon.backups(), "ein Geheimnis"));
        soon("the store holds all", || text(&daemon, &["history", "list"]).matches("8 delivered").count() == 3);
        if !running {
            assert!(daemon.term(IN_TIME).success());
        }
        assert!(bytes_are_in(&daemon.store(), "गुप्त बात 秘密的话"));
        if running {
            // The index of words holds it, too.
            soon("it is indexed", || bytes_are_in(&daemon.store(), "geheimnis"));
        }
        assert!(refusal(&daemon, &["history", "forget", "--mac", MAC], 64).contains("--yes"));
        assert!(refusal(&daemon, &["history", "forget", "--yes"], 64).contains("--mac"));
        let said = text(&daemon, &["history", "forget", "--mac", MAC, "--yes"]);
        assert!(said.contains(&format!("deleted of device {MAC}: 3 sessions, 17 messages")), "{said}");
        assert!(said.contains("3 backup files") && said.contains("checked: none of"), "{said}");
        for needle in ["ein Geheimnis", "geheimnis", "गुप्त", "गुप्त बात", "秘密的话", MAC, "6825ddba3978"]
        {
            assert!(!bytes_are_in(&daemon.store(), needle), "{needle} is still in the store");
            assert!(!bytes_are_in(&daemon.backups(), needle), "{needle} is still in the backups");
        }
        let list = text(&daemon, &["history", "list"]);
        assert!(list.lines().count() == 2 && list.contains(OTHER_MAC), "{list}");
        assert!(text(&daemon, &["history", "show", "s1"]).contains("Goodbye, little one"));
        if running {
            // The device may speak again.
            converse(&daemon, MAC, "s1");
            api.wait_for_rows("s1", 24);
            oracle::check_books(&daemon);
        }
    }
}

#[test]
fn what_is_undelivered_or_still_going_on_is_not_forgotten_by_the_way() {
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    let said = refusal(&daemon, &["history", "forget", "--session", "s", "--including-undelivered"], 64);
    assert!(said.contains(&format!("8 messages of session s (of {MAC})")), "{said}");
    let mut agent = Agent::connect(&daemon);
    agent.bind(OTHER_MAC, "open");
    agent.say(1, "still talking");
    agent.flush("durable");
    let said = refusal(&daemon, &["history", "forget", "--session", "s", "--yes"], 64);
    assert!(said.contains("8 messages of session s are undelivered") && said.contains("--including-undelivered"), "{said}");
    let words = ["history", "forget", "--session", "open", "--yes", "--including-undelivered"];
    let said = refusal(&daemon, &words, 64);
    assert!(said.contains("still open"), "{said}");
    assert_eq!(text(&daemon, &["history", "list"]).lines().count(), 3);
    let said = text(&daemon, &["history", "forget", "--session", "s", "--yes", "--including-undelivered"]);
    assert!(said.contains("1 sessions, 8 messages (8 undelivered"), "{said}");
    assert_eq!(daemon.labelled("skipped", "forgotten"), 8);
    oracle::check_books(&daemon);
}

/// Its session has its turn already and only waits until a request may be in flight.
#[test]
fn what_is_forgotten_while_it_waits_to_be_sent_is_not_sent() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    // It is taken in the end: an attempt that failed would end the other's turn.
    api.rule(Rule::new(Fault::Delay(Duration::from_secs(4))).session("hangs").times(1));
    let daemon = Daemon::builder().api(&api).set("upload.concurrency", "1");
    let daemon = daemon.set("manager_api.timeout", "'30s'").start();
    for session in ["hangs", "waits"] {
        let mut agent = Agent::connect(&daemon);
        agent.bind(MAC, session);
        agent.say(1, "Hello");
        agent.end();
        assert_eq!(agent.flush("durable")["ok"], true);
    }
    soon("both have their turn", || daemon.status()["upload"]["sending"] == 2);
    let said = text(&daemon, &["history", "forget", "--session", "waits", "--yes", "--including-undelivered"]);
    assert!(said.contains("1 sessions, 1 messages (1 undelivered"), "{said}");
    soon("the other is through", || daemon.metric("delivered") == 1);
    soon("no turn is left", || daemon.status()["upload"]["sending"] == 0);
    assert!(api.reports().iter().filter_map(|report| report.report.as_ref()).all(|said| said.session_id == "hangs"));
    oracle::check_books(&daemon);
}

/// How far a message in parts had come says nothing of the message that is next.
#[test]
fn what_was_sent_of_a_forgotten_message_takes_nothing_from_the_next() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    api.rule(Rule::new(Fault::code(500)).content("second"));
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "s");
    agent.say(1, &format!("{}{}end", "first ".repeat(170), "second ".repeat(150)));
    agent.end();
    assert_eq!(agent.flush("durable")["ok"], true);
    api.wait_for_rows("s", 1);
    soon("its second part fails", || api.reports().iter().any(|report| report.faulted));
    let said = text(&daemon, &["history", "forget", "--session", "s", "--yes", "--including-undelivered"]);
    assert!(said.contains("1 sessions, 1 messages (1 undelivered"), "{said}");
    let long = format!("The next one. {}", "It is long. ".repeat(80));
    agent.say(1, "A short sentence.");
    agent.say(1, long.trim_end());
    agent.end();
    let texts: Vec<String> = api.wait_for_rows("s", 3).into_iter().skip(1).map(|row| row.content).collect();
    assert_eq!(texts, ["A short sentence.", long.trim_end()]);
    soon("the books agree", || daemon.metric("pending") == 0);
    oracle::check_books(&daemon);
}

#[test]
fn a_set_aside_damaged_store_that_still_holds_the_text_is_named() {
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    assert!(daemon.term(IN_TIME).success());
    let corrupt = daemon.store().join("corrupt/old");
    std::fs::create_dir_all(&corrupt).expect("a directory");
    std::fs::copy(daemon.store().join("history.db"), corrupt.join("history.db")).expect("a copy");
    let output = run(&daemon, &["history", "forget", "--mac", MAC, "--yes", "--including-undelivered"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(70), "{said}");
    assert!(said.contains("corrupt/old/history.db") && said.contains("delete it by hand"), "{said}");
    // Nothing of it is in the store any more, but the set aside one holds it still.
    let output = run(&daemon, &["history", "forget", "--mac", MAC, "--yes"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(70), "{output:?}");
    assert!(said.contains("corrupt/old/history.db") && said.contains("delete it by hand"), "{said}");
    // Also where nobody reads what else is said.
    let output = run_unread(&daemon, &["history", "forget", "--mac", MAC, "--yes"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(70), "{said}");
    assert!(said.contains("corrupt/old/history.db"), "{said}");
    // Whoever was never in it is told that it is there.
    let said = text(&daemon, &["history", "forget", "--mac", OTHER_MAC, "--yes"]);
    assert!(said.contains("/corrupt are damaged stores: nothing of device") && !said.contains("checked: none of 0"), "{said}");
}

#[test]
fn what_others_said_too_is_theirs_and_no_file_is_to_be_deleted_for_it() {
    const GREETING: &str = "hello my friend, shall we read a story";
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    api.register(OTHER_MAC);
    let mut daemon = Daemon::builder().api(&api).prepare();
    // As in the package: the backups stand below the store.
    let backups = format!("'{}'", daemon.store().join("backup").display());
    daemon.set("backup.directory", &backups);
    daemon.start();
    for (mac, session) in [(MAC, "mine"), (OTHER_MAC, "gone"), (OTHER_MAC, "theirs")] {
        let mut agent = Agent::connect(&daemon);
        agent.bind(mac, session);
        if session == "theirs" {
            agent.line(&json!({"type": "user_input_transcribed", "transcript": GREETING, "is_final": true}));
        } else {
            agent.say(1, GREETING);
            agent.end();
        }
        agent.flush("durable");
    }
    soon("the greeting is held", || text(&daemon, &["history", "list", "--state", "held"]).contains("theirs"));
    soon("the greetings are delivered", || text(&daemon, &["history", "list"]).matches("1 delivered").count() == 2);
    soon("both are backed up", || daemon.metric("backups_written") >= 2);
    // Its backup stays, as after its rows have left by age.
    let kept =
        std::fs::read_dir(daemon.backups()).expect("the backups").flatten().map(|date| date.path()).next().expect("a date");
    let copy = daemon.directory().join("copy");
    std::fs::create_dir(&copy).expect("a directory");
    let is_others = |name: &std::ffi::OsString| name.to_str().is_some_and(|name| name.starts_with("aabbccddeeff_gone"));
    let name =
        std::fs::read_dir(&kept).expect("a date").flatten().map(|file| file.file_name()).find(is_others).expect("a backup");
    std::fs::copy(kept.join(&name), copy.join(&name)).expect("a copy");
    text(&daemon, &["history", "forget", "--session", "gone", "--yes"]);
    std::fs::create_dir_all(&kept).expect("a directory");
    std::fs::copy(copy.join(&name), kept.join(&name)).expect("put back");
    let said = text(&daemon, &["history", "forget", "--mac", MAC, "--yes"]);
    assert!(said.contains("1 sessions, 1 messages") && said.contains("checked: none of"), "{said}");
    assert!(kept.join(&name).exists());
}

#[test]
fn forgetting_beside_a_reader_ends_soon_and_says_that_the_log_is_still_read() {
    for database in ["history.db", "search.db"] {
        let api = ManagerApi::start(Variant::Fork);
        api.register(MAC);
        let daemon = Daemon::start_for(&api);
        converse(&daemon, MAC, "s");
        soon("all is delivered", || text(&daemon, &["history", "list"]).contains("8 delivered"));
        soon("all is indexed", || bytes_are_in(&daemon.store(), "say hi b bold b stars"));
        let reader = rusqlite::Connection::open(daemon.store().join(database)).expect("the database");
        reader.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema").expect("it reads");
        let mut forgetting = command(&daemon, &["history", "forget", "--mac", MAC, "--yes"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("it starts");
        eventually(IN_TIME, "it ends beside the reader", || forgetting.try_wait().expect("its state"));
        let output = forgetting.wait_with_output().expect("its output");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(70), "{output:?}");
        assert!(said.contains(database) && said.contains("end that reader and run this again"), "{said}");
        assert!(!said.contains("by hand"), "{said}");
        drop(reader);
        let said = text(&daemon, &["history", "forget", "--mac", MAC, "--yes"]);
        assert!(said.contains("there is nothing of device"), "{said}");
        for needle in ["Goodbye, little one", "goodbye little one"] {
            assert!(!bytes_are_in(&daemon.store(), needle), "{needle} is still in the store");
        }
    }
}

#[test]
fn what_a_reader_kept_in_the_index_leaves_it_when_the_reader_is_gone() {
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let daemon = Daemon::start_for(&api);
    converse(&daemon, MAC, "s");
    soon("all is delivered", || text(&daemon, &["history", "list"]).contains("8 delivered"));
    soon("all is indexed", || bytes_are_in(&daemon.store(), "goodbye little one"));
    let reader = rusqlite::Connection::open(daemon.store().join("search.db")).expect("the index");
    reader.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema").expect("it reads");
    assert_eq!(run(&daemon, &["history", "forget", "--mac", MAC, "--yes"]).status.code(), Some(70));
    drop(reader);
    soon("the index is clean", || !bytes_are_in(&daemon.store(), "goodbye little one"));
}

#[test]
fn an_export_is_read_back_as_it_was_and_reading_it_twice_changes_nothing() {
    let api = ManagerApi::start(Variant::Fork);
    let source = daemon_with_rejected(&api);
    converse(&source, MAC, "कहानी");
    api.wait_for_rows("कहानी", CONVERSATION.len());
    soon("all is delivered", || source.metric("pending") == 0);
    soon("and stored", || text(&source, &["history", "list"]).contains("8 delivered"));
    for format in ["json", "jsonl"] {
        for running in [true, false] {
            let export = text(&source, &["history", "export", "--format", format]);
            let mut target = Daemon::builder().start();
            if !running {
                assert!(target.term(IN_TIME).success());
            }
            let output = run_with_input(&target, &["history", "import", "-"], export.as_bytes());
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{output:?}");
            assert!(said.contains("imported 10 messages of 2 sessions; 0 were there already; 0 are pending"), "{said}");
            let without_date = |text: &str| {
                let lines = text.lines().filter(|line| !line.contains("\"exported\""));
                lines.map(str::to_owned).collect::<Vec<_>>()
            };
            let again = text(&target, &["history", "export", "--format", format]);
            assert_eq!(without_date(&again), without_date(&export), "{format}");
            assert_eq!(rejected(&target).len(), 2);
            let output = run_with_input(&target, &["history", "import", "-"], export.as_bytes());
            assert!(String::from_utf8_lossy(&output.stdout).contains("imported 0 messages of 2 sessions; 10 were there"));
            assert_eq!(without_date(&text(&target, &["history", "export", "--format", format])), without_date(&export));
        }
    }
}

#[test]
fn what_follows_an_export_in_the_same_input_is_not_passed_over_in_silence() {
    let source = Daemon::builder().start();
    converse(&source, MAC, "s");
    let export = text(&source, &["history", "export"]);
    let target = Daemon::builder().start();
    assert!(imported(&target, &format!("{export}\n \n")).contains("imported 8 messages"));
    let output = run_with_input(&target, &["history", "import", "-"], format!("{export}{export}").as_bytes());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(said.contains("something follows the export"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("8 were there already"), "{output:?}");
}

#[test]
fn what_was_pending_in_an_export_is_delivered_after_the_import() {
    let source = Daemon::builder().start();
    converse(&source, MAC, "s");
    let file = source.directory().join("out.jsonl");
    text(&source, &["history", "export", "--format", "jsonl", "-o", "out.jsonl"]);
    let api = ManagerApi::start(Variant::Fork);
    api.register(MAC);
    let target = Daemon::start_for(&api);
    let said = text(&target, &["history", "import", &file.display().to_string()]);
    assert!(said.contains("imported 8 messages") && said.contains("8 are pending"), "{said}");
    let rows = api.wait_for_rows("s", CONVERSATION.len());
    assert!(rows.iter().map(|row| row.content.as_str()).eq(CONVERSATION.map(|(_, content)| content)), "{rows:?}");
    oracle::check_books(&target);
}

fn imported(daemon: &Daemon, export: &str) -> String {
    let output = run_with_input(daemon, &["history", "import", "-"], export.as_bytes());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn a_held_transcript_comes_back_only_where_nothing_knows_what_became_of_it() {
    let hear = |agent: &mut Agent, transcript: &str| {
        agent.line(&json!({"type": "user_input_transcribed", "transcript": transcript, "is_final": true}));
        agent.flush("durable");
    };
    let item = json!({"type": "conversation_item_added", "item": {"id": "i1", "type": "message", "role": "user", "content": ["take me there"]}});
    for (format, ends_with_its_item) in [("json", false), ("jsonl", true)] {
        let api = ManagerApi::start(Variant::Fork);
        api.register(MAC);
        let source = Daemon::start_for(&api);
        let mut agent = Agent::connect(&source);
        agent.bind(MAC, "s");
        agent.say(2, "where to?");
        hear(&mut agent, "take me there");
        let export = text(&source, &["history", "export", "--format", format]);
        let said = imported(&source, &export);
        assert!(said.contains("imported 0 messages of 1 sessions; 2 were there already"), "{said}");
        let shown = text(&source, &["history", "show", "s"]);
        assert_eq!(shown.matches("take me there").count(), 1, "{shown}");
        if ends_with_its_item {
            agent.line(&item);
        }
        agent.end();
        agent.flush("durable");
        soon("both are delivered", || text(&source, &["history", "list"]).contains("2 delivered"));
        imported(&source, &export);
        assert_eq!(api.wait_for_rows("s", 2).len(), 2);
        let shown = text(&source, &["history", "show", "s"]);
        assert_eq!(shown.matches("take me there").count(), 1, "{shown}");
        assert_eq!(source.metric("pending"), 0);

        let target = Daemon::builder().start();
        let said = imported(&target, &export);
        assert!(said.contains("imported 2 messages"), "{said}");
        assert!(text(&target, &["history", "show", "s"]).contains("take me there [uncommitted]"));
        assert!(imported(&target, &export).contains("imported 0 messages"));
    }
}

/// An export of one session in JSONL with messages that these fields make.
fn export_of(messages: impl IntoIterator<Item = Value>) -> String {
    let header = json!({"kind": "header", "format": "chat-historyd/history", "version": 1, "exported": "x"});
    let session = json!({"kind": "session", "mac": MAC, "session_id": "s", "started_ms": 1});
    let messages = messages.into_iter().zip(1_u128..).map(|(fields, number)| {
        let uuid = uuid::Uuid::from_u128(number).to_string();
        let mut message = json!({
            "kind": "message", "mac": MAC, "session_id": "s", "uuid": uuid, "chat_type": 1, "time_ms": 1_758_701_973_000_i64,
            "recorded_ms": 1_758_701_973_000_i64, "content": format!("message {number}"), "state": "delivered",
        });
        message.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        message
    });
    [header, session].into_iter().chain(messages).map(|line| format!("{line}\n")).collect()
}

#[test]
fn held_transcripts_that_do_not_fit_in_one_request_come_back_all_the_same() {
    let daemon = Daemon::builder().start();
    let held = |number: u128| {
        let uuid = uuid::Uuid::from_u128(1_000 + number).to_string();
        let line = json!({"kind": "held", "mac": MAC, "session_id": "s", "uuid": uuid, "time_ms": 1_758_701_979_000_i64, "content": format!("heard {number}")});
        format!("{line}\n")
    };
    let said = imported(&daemon, &(export_of((0..499).map(|_| json!({}))) + &held(1) + &held(2)));
    assert!(said.contains("imported 501 messages"), "{said}");
}

#[test]
fn an_import_of_long_metadata_goes_through_the_daemon_too() {
    let daemon = Daemon::builder().start();
    let long = "x".repeat(100_000);
    let said = imported(&daemon, &export_of((0..200).map(|_| json!({"extra": {"note": long}}))));
    assert!(said.contains("imported 200 messages"), "{said}");
}

#[test]
fn a_time_that_no_clock_showed_is_not_imported_and_its_place_is_named() {
    let daemon = Daemon::builder().start();
    let refuse = |export: &str, place: &str, field: &str| {
        let output = run_with_input(&daemon, &["history", "import", "-"], export.as_bytes());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{said}");
        let expected = format!("history: {place}: {field} is ");
        assert!(said.contains(&expected) && said.contains("correct it there, or the clock here"), "{said}");
    };
    // The years 1, 60000, and one millisecond before 1970.
    for wild in [-62_135_596_800_000, 1_831_349_088_000_000, -1, i64::MAX] {
        for field in ["time_ms", "recorded_ms"] {
            refuse(&export_of([json!({}), json!({field: wild}), json!({})]), "-:4", field);
        }
        let export = export_of([json!({})]);
        refuse(&export.replace("\"started_ms\":1", &format!("\"started_ms\":{wild}")), "-:2", "started_ms");
    }
    let held = json!({"uuid": uuid::Uuid::from_u128(7).to_string(), "time_ms": -1, "content": "hm"});
    let session = json!({"mac": MAC, "session_id": "s", "started_ms": 1, "messages": [], "held": [held]});
    let document = format!(r#"{{"format":"chat-historyd/history","version":1,"sessions":[{session}]}}"#);
    refuse(&document, "-: session \"s\", held transcript 1", "time_ms");
    assert_eq!(json_of(&daemon, &["history", "export"])["sessions"][0]["messages"], json!([]));
}

#[test]
fn an_import_beyond_the_limit_of_the_store_is_refused_and_nothing_has_to_leave_for_it() {
    let daemon = Daemon::builder().set("store.max_bytes", "'16 MiB'").start();
    converse(&daemon, OTHER_MAC, "mine");
    let long = "x".repeat(100_000);
    let export = export_of((0..400).map(|_| json!({"extra": {"note": long}})));
    let output = run_with_input(&daemon, &["history", "import", "-"], export.as_bytes());
    let (said, told) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert_eq!(output.status.code(), Some(64), "{said}{told}");
    assert!(
        said.contains("history: -:1") && said.contains(", or what stands before it: session \"s\": there is no room"),
        "{said}"
    );
    assert!(said.contains("of 16 MiB (store.max_bytes) are used") && said.contains("raise store.max_bytes"), "{said}");
    // Most of what there was room for is there, and can be imported again.
    let count = |text: &str| text.split(' ').nth(1).and_then(|word| word.parse::<u64>().ok()).expect("a number");
    assert!((40..150).contains(&count(&told)), "{told}");
    let mut agent = Agent::connect(&daemon);
    agent.bind(OTHER_MAC, "after");
    agent.say(1, "there is room for me");
    assert_eq!(agent.flush("durable")["ok"], true);
    assert_eq!((daemon.metric("messages_pruned"), daemon.status()["store"]["full"].as_bool()), (0, Some(false)));
    assert!(text(&daemon, &["history", "show", "mine"]).contains("Goodbye"));
}

#[test]
fn what_else_was_said_of_a_message_is_exported_and_imported_digit_for_digit() {
    const METADATA: &str = r#"{"z": 1.0, "a": 1.50, "id": 123456789012345678901234567890, "small": 1E-3, "text": "a\u00e9\n"}"#;
    let source = Daemon::builder().start();
    let mut agent = Agent::connect(&source);
    agent.bind(MAC, "s");
    agent.raw(format!("{{\"type\":\"message\",\"chat_type\":1,\"content\":\"hi\",\"metadata\":{METADATA}}}\n").as_bytes());
    agent.end();
    agent.flush("durable");
    for format in ["json", "jsonl"] {
        let export = text(&source, &["history", "export", "--format", format]);
        assert!(export.contains(METADATA), "{export}");
        for running in [true, false] {
            let mut target = Daemon::builder().start();
            if !running {
                assert!(target.term(IN_TIME).success());
            }
            imported(&target, &export);
            let again = text(&target, &["history", "export", "--format", format]);
            assert!(again.contains(METADATA), "{again}");
        }
    }
    // As a person lays it out.
    let export = text(&source, &["history", "export"]).replace(", \"a\"", ",\r\n\"a\"");
    let target = Daemon::builder().start();
    imported(&target, &export);
    let lines = text(&target, &["history", "export", "--format", "jsonl"]);
    assert!(lines.contains(r#""z": 1.0,  "a": 1.50"#) && lines.lines().count() == 3, "{lines}");
    let export = export.replace("1E-3", "1E400");
    let output = run_with_input(&target, &["history", "import", "-"], export.as_bytes());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(64) && said.contains("extra holds what not every JSON reader takes"), "{output:?}");
}

#[test]
fn what_retention_will_take_again_is_told_when_it_is_imported() {
    let daemon = Daemon::builder().start();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    let export = export_of([json!({}), json!({"state": "pending"}), json!({"recorded_ms": now as i64})]);
    let output = run_with_input(&daemon, &["history", "import", "-"], export.as_bytes());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("1 messages of the export are older than store.retention (30days)"), "{said}");
}

#[test]
fn what_a_terminal_would_obey_is_not_imported() {
    let daemon = Daemon::builder().start();
    let content = "a\u{1b}]0;title\u{7}b\u{9b}c\nd";
    imported(&daemon, &export_of([json!({"content": content, "event_id": "i\u{1b}1"})]));
    let export = json_of(&daemon, &["history", "export"]);
    let message = &export["sessions"][0]["messages"][0];
    assert_eq!((&message["content"], &message["event_id"]), (&json!("a]0;titlebc\nd"), &json!("i1")));
}

#[test]
fn what_is_no_export_is_refused_with_the_place_and_without_the_text() {
    let daemon = Daemon::builder().start();
    let refuse = |input: &str| {
        let output = run_with_input(&daemon, &["history", "import", "-"], input.as_bytes());
        assert_eq!(output.status.code(), Some(64), "{input}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("secret"), "{said}");
        said
    };
    let header = r#"{"kind":"header","format":"chat-historyd/history","version":1,"exported":"x"}"#;
    assert!(refuse("").contains("is empty"));
    assert!(refuse("hello secret").contains("no export"));
    assert!(refuse(r#"{"format":"other","version":1,"sessions":[]}"#).contains("format"));
    assert!(refuse(r#"{"format":"chat-historyd/history","version":9,"sessions":[]}"#).contains("version"));
    assert!(refuse(r#"{"a":1}"#).contains("format"));
    // As a program writes it that sorts the fields.
    let sorted = r#"{"exported":"x","format":"chat-historyd/history","sessions":[],"version":1}"#;
    assert!(refuse(sorted).contains("must stand before sessions"));
    assert!(refuse(&format!("{header}\n{{\"kind\":\"secret\"}}\n")).contains("-:2"));
    let session = r#"{"kind":"session","mac":"68:25:dd:ba:39:78","session_id":"s","started_ms":1}"#;
    let message = r#"{"kind":"message","mac":"68:25:dd:ba:39:78","session_id":"t","uuid":"x","chat_type":1,"time_ms":1,"recorded_ms":1,"content":"secret","state":"pending"}"#;
    assert!(refuse(&format!("{header}\n{session}\n{message}\n")).contains("another session"));
    let message = message.replace("\"t\"", "\"s\"");
    let said = refuse(&format!("{header}\n{session}\n{message}\n"));
    assert!(said.contains("uuid") && said.contains("-:3"), "{said}");
    let file = daemon.directory().join("broken.jsonl");
    std::fs::write(&file, format!("{header}\n{session}\n{message}\n")).expect("a file");
    let output = run_unread(&daemon, &["history", "import", &file.display().to_string()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("uuid") && said.contains("broken.jsonl:3"), "{said}");
    assert!(refusal(&daemon, &["history", "import", "/no/such/file"], 64).contains("cannot read /no/such/file"));
}

#[test]
fn a_big_history_is_forgotten_beside_intake_that_never_stalls() {
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    assert!(daemon.term(IN_TIME).success());
    fill(&daemon, 50_000);
    daemon.start();
    let mut forgetting = command(&daemon, &["history", "forget", "--mac", OTHER_MAC, "--yes"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut agent = Agent::connect(&daemon);
    let mut slowest = Duration::ZERO;
    let mut rounds = 0;
    while forgetting.try_wait().expect("its state").is_none() {
        let began = std::time::Instant::now();
        agent.bind(MAC, "beside");
        agent.say(1, "and on it goes");
        agent.flush("durable");
        slowest = slowest.max(began.elapsed());
        rounds += 1;
    }
    let output = forgetting.wait_with_output().expect("its output");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("50000 messages"), "{output:?}");
    assert!(rounds > 5 && slowest < Duration::from_secs(2), "{rounds} rounds, the slowest took {slowest:?}");
}

#[test]
fn only_the_owner_and_root_may_change_the_history() {
    use std::io::{Read, Write};
    let daemon = Daemon::builder().set("socket.mode", "'0666'").start();
    converse(&daemon, MAC, "s");
    let script = r#"socket(S, AF_UNIX, SOCK_STREAM, 0) && connect(S, sockaddr_un($ARGV[0])) or die "$!";
        syswrite(S, "{\"forget\":{\"mac\":null,\"session_id\":\"s\",\"including_undelivered\":true}}\n"); print while <S>;"#;
    let socket = daemon.directory().join("run/status.sock");
    if nix::unistd::geteuid().is_root() {
        for path in [daemon.directory(), &daemon.directory().join("run")] {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        }
        let output = std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "perl", "-MSocket", "-e", script])
            .arg(&socket)
            .output()
            .expect("setpriv runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("only the daemon's own user and root"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    } else {
        crate::support::skipped("only root can be somebody else");
    }
    assert_eq!(text(&daemon, &["history", "list"]).lines().count(), 2);
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("the status socket");
    stream.write_all(b"no request\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("\"ok\":false") || answer.contains("\"uptime_seconds\""), "{answer}");
    assert!(daemon.try_status().is_some(), "the status is still told to whoever sends nothing");
}
