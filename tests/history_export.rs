//! Exports: every format from a real conversation in several scripts, whole or not there.

use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::support::history::{CONVERSATION, MAC, OTHER_MAC, SAID_AT, command, converse, fill, json_of, refusal, run, text};
use crate::support::{Agent, Daemon};

fn daemon() -> Daemon {
    let daemon = Daemon::builder().start();
    converse(&daemon, MAC, "first");
    converse(&daemon, OTHER_MAC, "कहानी-二");
    daemon
}

/// The keywords of JSON Schema that the published one uses, and no others.
fn check(schema: &Value, root: &Value, value: &Value, place: &str) {
    for (keyword, rule) in schema.as_object().expect("a schema") {
        match keyword.as_str() {
            "$ref" => {
                let pointer = rule.as_str().expect("a reference").trim_start_matches('#');
                check(root.pointer(pointer).unwrap_or_else(|| panic!("{pointer}")), root, value, place);
            }
            "const" => assert_eq!(value, rule, "{place}"),
            "enum" => assert!(rule.as_array().expect("a list").contains(value), "{place}: {value}"),
            "type" => {
                let kinds: Vec<&str> = rule.as_array().map_or_else(
                    || vec![rule.as_str().expect("a type")],
                    |kinds| kinds.iter().filter_map(Value::as_str).collect(),
                );
                let is = |kind: &&str| match *kind {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    other => panic!("unknown type {other}"),
                };
                assert!(kinds.iter().any(is), "{place}: {value} is no {kinds:?}");
            }
            "required" => {
                for name in rule.as_array().expect("a list").iter().filter_map(Value::as_str) {
                    assert!(value.get(name).is_some(), "{place} has no {name}");
                }
            }
            "properties" => {
                let fields = rule.as_object().expect("properties");
                for (name, field) in value.as_object().into_iter().flatten() {
                    if let Some(schema) = fields.get(name) {
                        check(schema, root, field, &format!("{place}/{name}"));
                    } else {
                        assert_ne!(schema.get("additionalProperties"), Some(&Value::Bool(false)), "{place} has {name}");
                    }
                }
            }
            "items" => value.as_array().into_iter().flatten().for_each(|item| check(rule, root, item, &format!("{place}[]"))),
            "pattern" => {
                let text = value.as_str().expect("a string");
                let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit() || b":-".contains(&byte));
                assert!(hex && matches!(text.len(), 17 | 36), "{place}: {text}");
            }
            "minLength" => assert!(value.as_str().expect("a string").chars().count() as u64 >= rule.as_u64().expect("a number")),
            "maxLength" => assert!(value.as_str().expect("a string").chars().count() as u64 <= rule.as_u64().expect("a number")),
            "minimum" => assert!(value.as_i64().expect("a number") >= rule.as_i64().expect("a number"), "{place}"),
            "$schema" | "title" | "description" | "format" | "additionalProperties" | "$defs" => {}
            other => panic!("the check does not know {other}"),
        }
    }
}

#[test]
fn json_and_every_line_of_jsonl_fit_the_published_schema() {
    let daemon = daemon();
    let schema = json_of(&daemon, &["history", "schema"]);
    let document = json_of(&daemon, &["history", "export"]);
    check(&schema, &schema, &document, "document");
    let said: Vec<&str> = document["sessions"][1]["messages"]
        .as_array()
        .expect("messages")
        .iter()
        .map(|one| one["content"].as_str().expect("text"))
        .collect();
    assert_eq!(said, CONVERSATION.map(|(_, content)| content));
    let lines = text(&daemon, &["history", "export", "--format", "jsonl"]);
    let mut kinds = Vec::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let kind = line["kind"].as_str().expect("a kind").to_owned();
        let name = if kind == "header" { kind.clone() } else { format!("{kind}_line") };
        check(&schema["$defs"][&name], &schema, &line, &kind);
        kinds.push(kind);
    }
    assert_eq!(kinds.iter().filter(|kind| *kind == "message").count(), 16);
    assert_eq!((kinds[0].as_str(), kinds[1].as_str(), kinds.len()), ("header", "session", 19));
    // The check itself can fail.
    let mut wrong = document.clone();
    wrong["sessions"][0]["messages"][0]["state"] = "lost".into();
    assert!(std::panic::catch_unwind(|| check(&schema, &schema, &wrong, "wrong")).is_err());
}

#[test]
fn csv_opens_right_in_a_spreadsheet() {
    let daemon = daemon();
    let csv = text(&daemon, &["history", "export", "--format", "csv", "--mac", MAC]);
    assert!(!csv.starts_with('\u{feff}'));
    let script = "import csv,sys,json; print(json.dumps(list(csv.reader(sys.stdin, strict=True))))";
    let file = daemon.directory().join("export.csv");
    std::fs::write(&file, &csv).expect("a file");
    let output = Command::new("python3")
        .args(["-c", script])
        .env("PYTHONUTF8", "1")
        .stdin(std::fs::File::open(&file).expect("the file"))
        .output()
        .expect("python3 runs");
    let rows: Vec<Vec<String>> = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(rows.len(), 9);
    assert_eq!(rows[0][5], "content");
    for (row, (chat_type, content)) in rows[1..].iter().zip(CONVERSATION) {
        let expected = if content.starts_with('=') { format!("'{content}") } else { content.to_owned() };
        assert_eq!((row.len(), &row[5], row[4].as_str()), (12, &expected, if chat_type == 1 { "user" } else { "agent" }));
        assert_eq!((row[0].as_str(), row[6].as_str()), (MAC, "pending"));
    }
    assert_eq!(csv.matches("\r\n").count(), 9);
    assert!(text(&daemon, &["history", "export", "--format", "csv", "--bom"]).starts_with('\u{feff}'));
}

#[test]
fn markdown_and_html_show_every_word_and_take_nothing_for_markup() {
    let daemon = daemon();
    let markdown = text(&daemon, &["history", "export", "--format", "markdown"]);
    for word in
        ["नमस्ते, मुझे हाथी की कहानी सुनाओ", "我想听大象的故事", "👨‍👩‍👧‍👦", "&lt;b&gt;bold&lt;/b&gt; &amp; \\*stars\\*", "interrupted"]
    {
        assert!(markdown.contains(word), "{word}\n{markdown}");
    }
    let html = text(&daemon, &["history", "export", "--format", "html"]);
    for word in ["नमस्ते, मुझे हाथी की कहानी सुनाओ", "从前有一只大象", "🍉", "&lt;b&gt;bold&lt;/b&gt; &amp; *stars*", "interrupted"]
    {
        assert!(html.contains(word), "{word}");
    }
    assert!(!html.contains("<b>") && !html.contains("<script") && !html.contains("src="), "{html}");
    assert!(html.ends_with("</html>\n") && html.contains("16 messages in 2 sessions"));
    for tag in ["section", "div", "p", "h2"] {
        let (opened, closed) = (html.matches(&format!("<{tag}")).count(), html.matches(&format!("</{tag}>")).count());
        assert_eq!(opened, closed, "{tag}");
    }
}

#[test]
fn a_page_tells_when_the_day_changes_and_lets_no_name_turn_the_words_beside_it() {
    let daemon = Daemon::builder().start();
    let (agent_id, reason) = ("سارة", "\u{202e}sdrawkcab");
    let mut agent = Agent::connect(&daemon);
    agent.line(&json!({"type": "session_start", "v": 1, "mac_address": MAC, "session_id": "s", "agent_id": agent_id}));
    // The session begins today.
    for (number, day) in [0, 0, 1, 1, 3].into_iter().enumerate() {
        let time = SAID_AT + day * 86_400;
        agent.line(&json!({"type": "message", "chat_type": 1, "content": format!("{number} said"), "timestamp": time}));
    }
    agent.line(&json!({"type": "session_end", "reason": reason}));
    agent.flush("durable");
    let html = text(&daemon, &["history", "export", "--format", "html"]);
    assert!(html.contains(&format!("(<bdi>{reason}</bdi>), agent <bdi>{agent_id}</bdi></p>")), "{html}");
    let texts = html.split('>').filter_map(|text| text.split_once('<')).map(|(text, _)| text);
    let told: Vec<&str> = texts.filter(|text| text.ends_with(" said") || text.starts_with("2025-09-")).collect();
    assert_eq!(told, ["2025-09-24", "0 said", "1 said", "2025-09-25", "2 said", "3 said", "2025-09-27", "4 said"], "{html}");
}

#[test]
fn a_file_appears_whole_private_and_replaces_the_old_one() {
    let daemon = daemon();
    let file = daemon.directory().join("out.json");
    std::fs::write(&file, "old").expect("a file");
    assert_eq!(text(&daemon, &["history", "export", "-o", "out.json"]), "");
    let written: Value = serde_json::from_slice(&std::fs::read(&file).expect("the file")).expect("JSON");
    assert_eq!(written["sessions"].as_array().expect("sessions").len(), 2);
    assert_eq!(file.metadata().expect("the file").permissions().mode() & 0o777, 0o600);
    assert_eq!(text(&daemon, &["history", "export", "-o", "/dev/null"]), "");
}

#[test]
fn an_export_goes_through_ones_own_link_and_into_what_the_shell_opened() {
    let daemon = daemon();
    std::fs::create_dir(daemon.directory().join("elsewhere")).expect("a directory");
    symlink("elsewhere/out.json", daemon.directory().join("link.json")).expect("a link");
    for _ in 0..2 {
        text(&daemon, &["history", "export", "-o", "link.json"]);
    }
    let written = std::fs::read(daemon.directory().join("elsewhere/out.json")).expect("the target");
    assert!(serde_json::from_slice::<Value>(&written).is_ok());
    assert!(daemon.directory().join("link.json").is_symlink());
    // Into a pipe, and behind what stands in a file already.
    assert!(text(&daemon, &["history", "export", "--format", "markdown", "-o", "/dev/stdout"]).starts_with("# Conversations"));
    let file = daemon.directory().join("shell.md");
    std::fs::write(&file, "before\n").expect("a file");
    let opened = std::fs::OpenOptions::new().append(true).open(&file).expect("the file");
    let words = ["history", "export", "--format", "markdown", "-o", "/dev/stdout"];
    assert!(command(&daemon, &words).stdout(opened).status().expect("it runs").success());
    let shell = std::fs::read_to_string(&file).expect("the file");
    assert!(shell.starts_with("before\n# Conversations") && shell.contains("Goodbye"), "{shell}");
}

#[test]
fn a_link_or_a_pipe_that_somebody_else_put_there_is_not_followed() {
    let daemon = daemon();
    let shared = daemon.directory().join("shared");
    std::fs::create_dir(&shared).expect("a directory");
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).expect("it is ours");
    let victim = daemon.directory().join("victim");
    std::fs::write(&victim, "precious").expect("a file");
    symlink(&victim, shared.join("planted.json")).expect("a link");
    symlink("planted.json", shared.join("own.json")).expect("a link");
    assert!(Command::new("mkfifo").arg(shared.join("pipe")).status().expect("it runs").success());
    for name in ["planted.json", "pipe"] {
        if std::os::unix::fs::lchown(shared.join(name), Some(65534), Some(65534)).is_err() {
            return crate::support::skipped("only root can be somebody else here");
        }
    }
    for (name, what) in [("planted.json", "symbolic link"), ("own.json", "symbolic link")] {
        let said = refusal(&daemon, &["history", "export", "-o", &format!("shared/{name}")], 73);
        let expected = format!("cannot write shared/{name}: the {what} ");
        assert!(
            said.contains(&expected)
                && said.contains("belongs to user 65534")
                && said.contains("name a file in a directory of your own"),
            "{said}"
        );
    }
    assert!(refusal(&daemon, &["history", "export", "-o", "shared/pipe"], 73).contains("named pipe"));
    assert_eq!(std::fs::read_to_string(&victim).expect("the file"), "precious");
    assert_eq!(std::fs::read_dir(&shared).expect("the directory").count(), 3);
}

#[test]
fn what_cannot_be_written_is_said_and_leaves_nothing_behind() {
    let daemon = daemon();
    let said = refusal(&daemon, &["history", "export", "-o", "no/such/file.json"], 73);
    assert!(said.contains("no/such/file.json") && said.contains("its directory does not exist"), "{said}");
    let said = refusal(&daemon, &["history", "export", "-o", "."], 73);
    assert!(said.contains("name a file in it"), "{said}");
    let said = refusal(&daemon, &["history", "export", "-o", "/dev/full"], 73);
    assert!(said.contains("cannot write /dev/full") && said.contains("free some room"), "{said}");
}

#[test]
fn a_validator_that_is_not_ours_finds_the_schema_sound_and_every_export_valid() {
    const SCRIPT: &str = r"
import json, jsonschema, sys
schema = json.load(open('schema.json'))
validator = jsonschema.validators.validator_for(schema)
validator.check_schema(schema)
assert validator is jsonschema.Draft202012Validator, validator
def part(name):
    return validator({'$ref': '#/$defs/' + name, '$defs': schema['$defs']}, format_checker=jsonschema.FormatChecker())
document = json.load(open('whole.json'))
validator(schema, format_checker=jsonschema.FormatChecker()).validate(document)
parts = {name: part(name) for name in schema['$defs']}
for text in open('lines.jsonl', encoding='utf-8'):
    line = json.loads(text)
    parts[line['kind'] if line['kind'] == 'header' else line['kind'] + '_line'].validate(line)
document['sessions'][0]['messages'][0]['state'] = 'lost'
assert not validator(schema).is_valid(document), 'it takes everything'
print('valid')
";
    let mut daemon = daemon();
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "open");
    agent.line(&serde_json::json!({"type": "user_input_transcribed", "transcript": "only heard", "is_final": true}));
    agent.line(&serde_json::json!({"type": "message", "chat_type": 2, "content": "with all", "id": "i", "metadata": {"deep": [1, null]}, "audio_base64": "AAEC"}));
    agent.flush("durable");
    let python = |script: &str| {
        Command::new("/usr/bin/python3").args(["-c", script]).env("PYTHONUTF8", "1").current_dir(daemon.directory()).output()
    };
    if !python("import jsonschema").is_ok_and(|output| output.status.success()) {
        return crate::support::skipped("no python3-jsonschema here");
    }
    std::fs::write(daemon.directory().join("schema.json"), text(&daemon, &["history", "schema"])).expect("a file");
    text(&daemon, &["history", "export", "--audio", "-o", "whole.json"]);
    text(&daemon, &["history", "export", "--audio", "--format", "jsonl", "-o", "lines.jsonl"]);
    let output = python(SCRIPT).expect("it ran before");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "valid\n", "{}", String::from_utf8_lossy(&output.stderr));
    assert!(daemon.term(std::time::Duration::from_secs(20)).success());
}

#[test]
fn a_full_disk_leaves_the_old_export_and_no_half_of_a_new_one() {
    if !Command::new("unshare").args(["-Urm", "true"]).status().is_ok_and(|status| status.success()) {
        return crate::support::skipped("no user namespaces here");
    }
    let daemon = daemon();
    let script = "set -e; mkdir -p full; mount -t tmpfs -o size=64k tmpfs full; echo old > full/out.json; \
                  head -c 61440 /dev/zero > full/ballast || true; \
                  code=0; \"$0\" history export -o full/out.json --config \"$1\" || code=$?; \
                  test $code -eq 73; test \"$(cat full/out.json)\" = old; ls -A full";
    let output = Command::new("unshare")
        .args(["-Urm", "sh", "-c", script])
        .arg(crate::support::daemon::binary())
        .arg(daemon.config())
        .current_dir(daemon.directory())
        .output()
        .expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ballast\nout.json\n");
    assert!(said.contains("cannot write full/out.json"), "{said}");
}

#[test]
fn an_export_killed_in_the_middle_leaves_nothing() {
    let daemon = daemon();
    fill(&daemon, 20_000);
    let place = daemon.directory().join("place");
    std::fs::create_dir(&place).expect("a directory");
    let mut child =
        command(&daemon, &["history", "export", "-o", "place/out.json"]).stdout(Stdio::null()).spawn().expect("it starts");
    std::thread::sleep(std::time::Duration::from_millis(60));
    let was_running = child.try_wait().expect("its state").is_none();
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    assert!(was_running, "it was done before it could be killed");
    assert_eq!(std::fs::read_dir(&place).expect("the directory").count(), 0);
}

#[test]
fn any_number_of_messages_passes_through_in_constant_memory() {
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    assert!(daemon.term(std::time::Duration::from_secs(20)).success());
    let mut peaks = Vec::new();
    for messages in [2_000, 60_000] {
        fill(&daemon, messages);
        let config = daemon.config().display().to_string();
        let script = "import resource,subprocess,sys; subprocess.check_call(sys.argv[1:]); \
                      sys.stderr.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))";
        let mut peak = 0;
        for format in ["jsonl", "json", "csv", "markdown", "html"] {
            let output = Command::new("python3")
                .args(["-c", script, &crate::support::daemon::binary().display().to_string()])
                .args(["history", "export", "--format", format, "-o", "/dev/null", "--config", &config])
                .output()
                .expect("python3 runs");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            peak = peak.max(said.trim().parse::<u64>().unwrap_or_else(|_| panic!("{said}")));
        }
        peaks.push(peak);
    }
    assert!(peaks[1] < peaks[0] + 8 * 1024, "peak memory in kB for 2 000 and 60 000 messages: {peaks:?}");
}

#[test]
fn an_export_to_a_pipe_streams() {
    let daemon = daemon();
    fill(&daemon, 20_000);
    let mut child =
        command(&daemon, &["history", "export", "--format", "jsonl"]).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert!(lines.next().expect("a line").expect("UTF-8").contains("header"));
    assert!(child.try_wait().expect("its state").is_none(), "the first line came only with the last");
    assert!(lines.count() > 20_000);
    assert!(child.wait().expect("it ends").success());
    assert!(run(&daemon, &["history", "list"]).status.success());
}

/// A daemon whose store holds, behind more messages than a pipe takes, one session more; and an export of it that has begun
/// and that nobody reads on.
fn stalled_export(last_session: impl FnOnce(&Daemon)) -> (Daemon, Child, Lines<BufReader<ChildStdout>>) {
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "first");
    assert!(daemon.term(std::time::Duration::from_secs(20)).success());
    fill(&daemon, 5_000);
    daemon.start();
    last_session(&daemon);
    let words = ["history", "export", "--format", "jsonl"];
    let child = command(&daemon, &words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert!(lines.next().expect("a line").expect("UTF-8").contains("header"));
    assert!(child.try_wait().expect("its state").is_none(), "it is done already");
    (daemon, child, lines)
}

#[test]
fn what_is_held_when_an_export_begins_is_in_it_once_when_it_becomes_a_message_meanwhile() {
    let (daemon, child, lines) = stalled_export(|daemon| {
        let mut agent = Agent::connect(daemon);
        agent.bind(MAC, "open");
        agent.line(&serde_json::json!({"type": "user_input_transcribed", "transcript": "only heard", "is_final": true}));
        agent.flush("durable");
    });
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "open");
    agent.say(2, "said later");
    agent.end();
    agent.flush("durable");
    let shown = text(&daemon, &["history", "show", "open"]);
    assert!(shown.contains("only heard [uncommitted]"), "{shown}");
    let rest: Vec<String> = lines.map(|line| line.expect("UTF-8")).collect();
    assert_eq!(rest.iter().filter(|line| line.contains("only heard")).count(), 1);
    assert!(rest.iter().all(|line| !line.contains("said later")));
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn messages_that_leave_the_store_before_an_export_comes_to_them_are_counted() {
    let (daemon, child, lines) = stalled_export(|daemon| converse(daemon, MAC, "leaves"));
    text(&daemon, &["history", "forget", "--session", "leaves", "--yes", "--including-undelivered"]);
    assert_eq!(lines.filter(|line| line.as_ref().is_ok_and(|line| line.contains("Goodbye"))).count(), 1);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("8 messages left the store while it was exported"), "{output:?}");
}

#[cfg(not(feature = "pdf"))]
#[test]
fn a_binary_without_pdf_says_how_to_get_it() {
    let daemon = daemon();
    let said = refusal(&daemon, &["history", "export", "--format", "pdf", "-o", "out.pdf"], 64);
    for words in ["built without PDF", "the packages have it", "--features pdf", "--format html"] {
        assert!(said.contains(words), "{said}");
    }
    assert!(!daemon.directory().join("out.pdf").exists());
}

/// A headless Chromium, where there is one.
fn chromium(arguments: &[&str], home: &std::path::Path) -> Option<std::process::Output> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let quiet =
        ["--no-first-run", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
    let standard = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=1000"];
    // A page that waits for the network makes it wait for ever.
    let run = |name: &&str| {
        let output =
            Command::new("timeout").args(["60", name]).args(standard).args(quiet).args(arguments).env("HOME", home).output();
        output.ok().filter(|output| output.status.code() != Some(127))
    };
    names.iter().find_map(run)
}

#[test]
fn the_page_opens_and_prints_in_a_real_browser() {
    let daemon = daemon();
    text(&daemon, &["history", "export", "--format", "html", "-o", "page.html"]);
    let page = format!("file://{}", daemon.directory().join("page.html").display());
    let Some(output) = chromium(&["--dump-dom", &page], daemon.directory()) else {
        return crate::support::skipped("no Chromium here");
    };
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["नमस्ते, मुझे हाथी की कहानी सुनाओ", "从前有一只大象", "👨‍👩‍👧‍👦", "&lt;b&gt;bold&lt;/b&gt;", "16 messages in 2 sessions"]
    {
        assert!(dom.contains(word), "{word}\n{dom}");
    }
    assert_eq!(dom.matches("class=\"message ").count(), 16, "{dom}");
    let pdf = daemon.directory().join("page.pdf");
    let print = format!("--print-to-pdf={}", pdf.display());
    let output = chromium(&[&print, "--no-pdf-header-footer", &page], daemon.directory()).expect("it ran before");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = std::fs::read(&pdf).expect("the print");
    assert!(printed.starts_with(b"%PDF") && printed.len() > 5_000, "{} bytes", printed.len());
    let poppler = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(daemon.directory()).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let noto = std::path::Path::new("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc").exists();
    let Some(fonts) = poppler("pdffonts", &["page.pdf"]).filter(|_| noto) else {
        return crate::support::skipped("no poppler-utils, or no Noto fonts");
    };
    assert!(fonts.contains("Devanagari"), "the glyphs are other fonts' boxes: {fonts}");
    // Fonts with PostScript outlines are embedded without a name: two characters that look different are no boxes.
    let drawn = |character: &str| {
        std::fs::write(daemon.directory().join("one.html"), format!("<!DOCTYPE html><meta charset=utf-8><p>{character}")).ok()?;
        let (one, pdf) = (daemon.directory().join("one.html"), daemon.directory().join("one.pdf"));
        chromium(
            &[&format!("--print-to-pdf={}", pdf.display()), "--no-pdf-header-footer", &format!("file://{}", one.display())],
            daemon.directory(),
        )?;
        let output = Command::new("pdftoppm").args(["-r", "72", "-png"]).arg(&pdf).output().ok()?;
        Some(output.stdout).filter(|picture| picture.starts_with(b"\x89PNG"))
    };
    let pictures = ["大", "象", "大"].map(|character| drawn(character).expect("a picture"));
    assert!(pictures[0] == pictures[2] && pictures[0] != pictures[1], "Chinese characters are boxes");
    let squeezed = |text: &str| text.chars().filter(|character| !character.is_whitespace()).collect::<String>();
    let read = squeezed(&poppler("pdftotext", &["-raw", "page.pdf", "-"]).expect("it ran before"));
    for word in
        ["从前有一只大象,它很喜欢吃西瓜。", "Say \"hi\", <b>bold</b> & *stars*;", "=HYPERLINK(\"http://x\",\"click\")", "हाथी"]
    {
        assert!(read.contains(&squeezed(word)), "{word}\n{read}");
    }
}

#[test]
fn the_page_runs_nothing_and_asks_nobody_in_a_real_browser() {
    let daemon = Daemon::builder().start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let leak = format!("http://{}/leak", listener.local_addr().expect("its address"));
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&asked);
    // Hangs up at once, so that no page waits for an answer; ends with the test.
    std::thread::spawn(move || {
        for _ in listener.incoming() {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    });
    let asked = || asked.swap(0, std::sync::atomic::Ordering::SeqCst);
    let hostile = format!(
        "</p><script>document.title='owned'</script><script src={leak}></script><img src={leak} onerror=\"document.title='owned'\">\
         <link rel=stylesheet href={leak}><style>body{{background:url({leak})}}</style><meta http-equiv=refresh content='0;url={leak}'>"
    );
    let mut agent = Agent::connect(&daemon);
    agent.bind(MAC, "<img src=x onerror=document.title='owned'>");
    agent.say(1, &hostile);
    agent.end();
    agent.flush("durable");
    text(&daemon, &["history", "export", "--format", "html", "-o", "page.html"]);
    let page = daemon.directory().join("page.html");
    let open = |path: &std::path::Path| chromium(&["--dump-dom", &format!("file://{}", path.display())], daemon.directory());
    let Some(output) = open(&page) else { return crate::support::skipped("no Chromium here") };
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(dom.contains("<title>Conversations</title>") && dom.contains("document.title='owned'"), "{dom}");
    assert_eq!(asked(), 0, "the page asked for something");
    // The same in a page that lets it happen: the check sees it. And with the policy of ours, nothing comes of it even so.
    let careless = daemon.directory().join("careless.html");
    let without_refresh = hostile.split("<meta").next().expect("the rest");
    std::fs::write(&careless, format!("<!DOCTYPE html><title>careless</title><p>{without_refresh}")).expect("a page");
    let output = open(&careless).expect("it ran before");
    assert!(String::from_utf8_lossy(&output.stdout).contains("owned</title>"), "{output:?}");
    crate::support::soon("the careless page asks", || asked() > 0);
    let html = std::fs::read_to_string(&page).expect("the page");
    let policy = html.lines().find(|line| line.contains("Content-Security-Policy")).expect("a policy");
    std::fs::write(&careless, format!("<!DOCTYPE html>{policy}<title>kept</title><p>{without_refresh}")).expect("a page");
    let output = open(&careless).expect("it ran before");
    assert!(String::from_utf8_lossy(&output.stdout).contains("<title>kept</title>"), "{output:?}");
    assert_eq!(asked(), 0, "the policy let it ask");
}

#[test]
fn a_long_export_shows_its_progress_on_a_terminal_and_nowhere_else() {
    let daemon = daemon();
    fill(&daemon, 60_000);
    let words = format!("history export --format html -o out.html --config {}", daemon.config().display());
    // A slow disk: one of its writes takes longer than an export may take in silence.
    let slow = "strace -f -qq -o /dev/null -e trace=write -e inject=write:delay_enter=1100000:when=3";
    let output = Command::new("script")
        .args([
            "--quiet",
            "--return",
            "--command",
            &format!("{slow} {} {words}", crate::support::daemon::binary().display()),
            "/dev/null",
        ])
        .current_dir(daemon.directory())
        .output()
        .expect("script(1) runs");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("of 60016 messages") && shown.contains(" %"), "{shown}");
    assert!(shown.ends_with("\u{1b}[K"), "the line is left behind: {shown}");
    let output = run(&daemon, &["history", "export", "--format", "html", "-o", "out.html"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
