//! The whole way, measured: load generator → the real release binary → an HTTP sink, on one machine, beside what
//! `reqwest` and `hyper` alone reach against the same sink in the same run.
//!
//! ```text
//! cargo bench --bench pipeline                 all figures; writes target/pipeline.md and target/pipeline.json
//! cargo bench --bench pipeline -- ingest live  only some: idle ingest delivery live (lone, busy) flat errors
//! cargo bench --bench pipeline -- --small      a few seconds, and fails on gross ratios only: the guard, which CI runs as
//!                                              `benches/run --small` of the binary as it is shipped
//! ```
//! `TMPDIR` chooses the disk; `CHAT_HISTORYD_BINARY` another binary. Figures are medians of `--runs N` (5). Order, loss
//! and duplicates are checked in every run: a wrong delivery ends the program with an error, however fast it was.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it prints figures and may fail loudly"
)]

mod daemon;
mod figures;
mod limits;
mod load;
mod sink;
mod text;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use daemon::{Daemon, Setup, Usage};
use figures::{Aim, Figures, median, middle, percentile, pretty, spread};
use limits::{Client, Limit};
use sink::{Books, Sink};
use text::Clock;

const SESSIONS: usize = 50;
const CONCURRENCY: usize = 8;
const DEADLINE: Duration = Duration::from_secs(600);

/// Lines that come at a fixed rate while they are delivered.
struct Live {
    name: &'static str,
    a_second: u64,
    latency: Duration,
    time: Duration,
    aims: [Aim; 7],
    /// Whether what its parts cost alone is measured beside it.
    alone: bool,
}

/// A host on an ordinary day: every message is alone on its way.
const LONE: Live = Live {
    name: "150 lines/s, API 5 ms",
    a_second: 150,
    latency: Duration::from_millis(5),
    time: Duration::from_secs(10),
    aims: [Aim::AtMost(0.8), Aim::AtMost(3.0), Aim::None, Aim::None, Aim::AtMost(120.0), Aim::AtMost(16_000.0), Aim::None],
    alone: true,
};

const BUSY: Live = Live {
    name: "10 000 lines/s, API 0 ms",
    a_second: 10_000,
    latency: Duration::ZERO,
    time: Duration::from_secs(5),
    aims: [Aim::None, Aim::None, Aim::None, Aim::AtMost(5.0), Aim::None, Aim::AtMost(6000.0), Aim::None],
    alone: false,
};

/// Messages that a daemon has delivered before it is measured, where it is one in use.
const BEFORE: u64 = 50_000;

/// Backlogs whose messages should cost the same, and the order of a round: the short ones, at the mercy of their moment, more
/// often, and on both sides of the long one, for the machine may change its speed meanwhile.
const BACKLOGS: [u64; 3] = [10_000, 100_000, 1_000_000];
const ROUND: [usize; 9] = [0, 0, 0, 1, 2, 1, 0, 0, 0];

/// One drain of a backlog.
struct Drain {
    rate: f64,
    cpu_micros: f64,
    written_bytes: f64,
    commits: f64,
    resident: f64,
}

impl Drain {
    /// From what a daemon used for the messages `measured`; it is stopped, and all must have come well.
    fn of(books: &Books, used: Usage, measured: u64, daemon: Daemon, messages: u64) -> Self {
        let resident = daemon.resident().1;
        daemon.stop();
        check(books, messages);
        let each = |value: f64| value / measured as f64;
        Self {
            rate: books.rate(),
            cpu_micros: each(used.cpu_micros),
            written_bytes: each(used.written_bytes),
            commits: each(used.commits),
            resident,
        }
    }
}

struct Program {
    clock: Clock,
    sink: Sink,
    runs: usize,
    small: bool,
    figures: Figures,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let small = arguments.iter().any(|argument| argument == "--small");
    let runs = arguments
        .iter()
        .position(|argument| argument == "--runs")
        .map_or(if small { 1 } else { 5 }, |at| arguments[at + 1].parse().unwrap());
    let parts: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| word.chars().all(char::is_alphabetic)).collect();
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let clock = Clock::new();
    let mut program = Program { clock, sink: Sink::start(clock), runs, small, figures: Figures::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        program.disk();
        if small {
            program.guard().await;
            return;
        }
        if wanted("idle") {
            program.idle().await;
        }
        if wanted("ingest") {
            program.ingest().await;
        }
        if wanted("delivery") {
            program.delivery().await;
        }
        if wanted("live") || wanted("lone") {
            program.live(LONE).await;
        }
        if wanted("live") || wanted("busy") {
            program.live(BUSY).await;
        }
        if wanted("flat") {
            program.flat().await;
        }
        if wanted("errors") {
            program.errors().await;
        }
    });
    program.write();
}

fn directory() -> tempfile::TempDir {
    // Not `/tmp`, which may be memory: the disk counts.
    let place = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    std::fs::create_dir_all(&place).unwrap();
    tempfile::Builder::new().prefix("pipeline-").tempdir_in(place).unwrap()
}

fn check(books: &Books, messages: u64) {
    assert_eq!((books.stored, books.skipped, books.repeated), (messages, 0, 0), "stored, out of order or lost, repeated");
}

impl Program {
    fn unreachable() -> Setup {
        Setup { api: None, concurrency: CONCURRENCY, batch_size: 1 }
    }

    fn reachable(&self) -> Setup {
        Setup { api: Some(self.sink.address), ..Self::unreachable() }
    }

    /// What a sync costs here: every figure of a lone message stands on it.
    fn disk(&mut self) {
        let place = directory();
        let file = std::fs::File::create(place.path().join("syncs")).unwrap();
        let (syncs, page) = (500_u64, [1_u8; 4096]);
        let before = limits::cpu_of_this_thread();
        let mut took: Vec<u64> = (0..syncs)
            .map(|at| {
                std::os::unix::fs::FileExt::write_all_at(&file, &page, at % 64 * 4096).unwrap();
                let started = Instant::now();
                file.sync_data().unwrap();
                u64::try_from(started.elapsed().as_nanos()).unwrap()
            })
            .collect();
        let cpu = (limits::cpu_of_this_thread() - before) / syncs as f64;
        self.figures.add("this disk: a sync, p50", percentile(&mut took, 0.5), "ms", Aim::None);
        self.figures.add("this disk: a sync, p99", percentile(&mut took, 0.99), "ms", Aim::None);
        self.figures.add("this disk: CPU of a write with its sync", cpu, "µs", Aim::None);
    }

    async fn idle(&mut self) {
        let place = directory();
        let daemon = Daemon::start(place.path(), self.reachable());
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = daemon.usage();
        let time = Duration::from_secs(20);
        tokio::time::sleep(time).await;
        let used = daemon.usage() - before;
        self.figures.add("idle: RSS", daemon.resident().0, "MiB", Aim::AtMost(10.0));
        self.figures.add("idle: CPU", used.cpu_micros / time.as_micros() as f64 * 100.0, "%", Aim::AtMost(0.1));
        daemon.stop();
    }

    /// Durable, while the API cannot be reached; then what a million pending messages weigh at rest and at a start.
    async fn ingest(&mut self) {
        let messages = 1_000_000_u64;
        let (mut rates, mut used, mut peaks, mut pending, mut starts, mut started) =
            (vec![], vec![], vec![], vec![], vec![], vec![]);
        for _ in 0..self.runs {
            let place = directory();
            let daemon = Daemon::start(place.path(), Self::unreachable());
            let before = daemon.usage();
            let elapsed = load::flood(&daemon.socket(), SESSIONS, SESSIONS, messages).await;
            rates.push(messages as f64 / elapsed.as_secs_f64());
            used.push(daemon.usage() - before);
            let (now, peak) = daemon.resident();
            peaks.push(peak);
            pending.push(now);
            daemon.stop();
            let again = Daemon::start(place.path(), Self::unreachable());
            starts.push(again.started_in.as_secs_f64());
            tokio::time::sleep(Duration::from_secs(1)).await;
            started.push(again.resident().1);
            again.stop();
        }
        let each = |value: fn(&Usage) -> f64| median(used.iter().map(|used| value(used) / messages as f64).collect());
        let figures = &mut self.figures;
        figures.add("ingest, API unreachable", median(rates), "lines/s", Aim::AtLeast(200_000.0));
        figures.add("ingest: CPU a line", each(|used| used.cpu_micros), "µs", Aim::None);
        figures.add("ingest: written a line", each(|used| used.written_bytes), "B", Aim::AtMost(2000.0));
        figures.add("ingest: lines a sync", 1.0 / each(|used| used.commits), "", Aim::None);
        figures.add("ingest: RSS peak", median(peaks), "MiB", Aim::AtMost(32.0));
        figures.add("1 000 000 pending: RSS after the flood", median(pending), "MiB", Aim::AtMost(48.0));
        figures.add("1 000 000 pending: start to READY", median(starts), "s", Aim::AtMost(0.5));
        figures.add("1 000 000 pending: RSS peak of the start", median(started), "MiB", Aim::AtMost(48.0));
    }

    /// Fills a store while nobody can be reached, then lets a new daemon drain it.
    async fn drain(&self, messages: u64, latency: Duration, fails_one_of: u64) -> Drain {
        let place = directory();
        let filling = Daemon::start(place.path(), Self::unreachable());
        load::flood(&filling.socket(), SESSIONS, SESSIONS, messages).await;
        filling.stop();
        self.sink.expect(SESSIONS, messages, latency, fails_one_of);
        let daemon = Daemon::start(place.path(), self.reachable());
        let (before, sent_before) = (daemon.usage(), self.sink.stored());
        let books = self.sink.complete(DEADLINE).await.expect("everything arrives");
        let used = daemon.usage() - before;
        Drain::of(&books, used, messages - sent_before, daemon, messages)
    }

    /// A daemon as it is in use: it has delivered before, and its log has the length that it keeps.
    async fn in_use(&self) -> (tempfile::TempDir, Daemon) {
        let place = directory();
        let daemon = Daemon::start(place.path(), self.reachable());
        self.sink.expect(SESSIONS, BEFORE, Duration::ZERO, 0);
        load::flood(&daemon.socket(), SESSIONS, SESSIONS, BEFORE).await;
        check(&self.sink.complete(DEADLINE).await.expect("everything arrives"), BEFORE);
        (place, daemon)
    }

    /// What a daemon in use takes in while the API hangs, and delivers once it answers again.
    async fn outage(&self, messages: u64, latency: Duration) -> Drain {
        let (_place, daemon) = self.in_use().await;
        self.sink.expect(SESSIONS, messages, latency, 0);
        self.sink.hold(true);
        load::flood(&daemon.socket(), SESSIONS, SESSIONS, messages).await;
        // What else it does with what it took in, it does when it has time: before the end of an outage it had.
        daemon.at_rest().await;
        let before = daemon.usage();
        self.sink.hold(false);
        let books = self.sink.complete(DEADLINE).await.expect("everything arrives");
        let used = daemon.usage() - before;
        Drain::of(&books, used, messages, daemon, messages)
    }

    fn limit(&self, client: Client, latency: Duration, requests: u64) -> Limit {
        self.sink.expect(SESSIONS, u64::MAX, latency, 0);
        limits::measure(client, self.sink.address, CONCURRENCY, requests)
    }

    /// A recovered outage beside its limits. In turn, for the machine may be another one a minute later: ratios are those of a round.
    async fn delivery(&mut self) {
        struct Round {
            reqwest: Limit,
            hyper: Limit,
            drain: Drain,
        }
        for (millis, messages) in [(0, 100_000), (5, 8_000), (20, 4_000)] {
            let latency = Duration::from_millis(millis);
            let mut rounds = Vec::new();
            for _ in 0..self.runs {
                rounds.push(Round {
                    reqwest: self.limit(Client::Reqwest, latency, messages),
                    drain: self.outage(messages, latency).await,
                    hyper: self.limit(Client::Hyper, latency, messages),
                });
            }
            let name = format!("delivery, {CONCURRENCY} at once, API {millis} ms");
            let (rate_aim, ratio_aim, cpu_aim) = match millis {
                0 => (Aim::AtLeast(40_000.0), Aim::AtLeast(0.65), Aim::AtMost(25.0)),
                5 => (Aim::None, Aim::AtLeast(0.95), Aim::None),
                _ => (Aim::None, Aim::None, Aim::None),
            };
            let mut add = |of: &str, value: fn(&Round) -> f64, unit, aim| {
                self.figures.add(format!("{name}{of}"), middle(&rounds, value), unit, aim);
            };
            add("", |round| round.drain.rate, "messages/s", rate_aim);
            add(": reqwest alone", |round| round.reqwest.rate, "requests/s", Aim::None);
            add(": hyper alone", |round| round.hyper.rate, "requests/s", Aim::None);
            add(": share of reqwest", |round| round.drain.rate / round.reqwest.rate, "", ratio_aim);
            add(": CPU a message", |round| round.drain.cpu_micros, "µs", cpu_aim);
            add(": CPU of reqwest", |round| round.reqwest.cpu_micros, "µs", Aim::None);
            add(": CPU of hyper", |round| round.hyper.cpu_micros, "µs", Aim::None);
            add(": written a message", |round| round.drain.written_bytes, "B", Aim::None);
            add(": syncs a message", |round| round.drain.commits, "", Aim::None);
            add(": RSS peak", |round| round.drain.resident, "MiB", Aim::None);
        }
    }

    /// At a fixed rate with delivery running: latencies, and what a message costs on its way. For lone ones, in turn, what
    /// their request and their sync cost by themselves, at the same pace: no daemon can do with less.
    async fn live(&mut self, live: Live) {
        let Live { name, a_second, latency, time, aims, alone } = live;
        let lines = a_second * time.as_secs() / SESSIONS as u64 * SESSIONS as u64;
        let (mut runs, mut requests_alone, mut syncs_alone) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.runs {
            let (place, daemon) = self.in_use().await;
            self.sink.expect(SESSIONS, lines, latency, 0);
            let before = daemon.usage();
            let mut acks = load::paced(&daemon.socket(), self.clock, SESSIONS, a_second, time).await;
            let mut books = self.sink.complete(DEADLINE).await.expect("everything arrives");
            let used = daemon.usage() - before;
            daemon.stop();
            check(&books, lines);
            let (each, arrivals) = (|value: f64| value / lines as f64, &mut books.latencies);
            runs.push([
                percentile(arrivals, 0.5),
                percentile(arrivals, 0.99),
                percentile(&mut acks, 0.5),
                percentile(&mut acks, 0.99),
                each(used.cpu_micros),
                each(used.written_bytes),
                each(used.commits),
            ]);
            if alone {
                self.sink.expect(SESSIONS, u64::MAX, latency, 0);
                requests_alone.push(limits::lone_request(self.sink.address, a_second, lines));
                syncs_alone.push(limits::lone_sync(place.path(), a_second, lines));
            }
        }
        let told = [
            ("write to arrival, p50", "ms"),
            ("write to arrival, p99", "ms"),
            ("ack, p50", "ms"),
            ("ack, p99", "ms"),
            ("CPU a message", "µs"),
            ("written a message", "B"),
            ("syncs a message", ""),
        ];
        for (at, ((what, unit), aim)) in told.into_iter().zip(aims).enumerate() {
            self.figures.add(format!("{name}: {what}"), middle(&runs, |run| run[at]), unit, aim);
        }
        if alone {
            self.figures.add(format!("{name}: CPU of reqwest alone"), median(requests_alone), "µs", Aim::None);
            self.figures.add(
                format!("{name}: CPU of a write of 3 pages and its sync alone"),
                median(syncs_alone),
                "µs",
                Aim::None,
            );
        }
    }

    /// Whether the cost of a message grows with the backlog that an outage leaves behind.
    async fn flat(&mut self) {
        let mut drains: [Vec<Drain>; BACKLOGS.len()] = Default::default();
        let mut at_a_start = Vec::new();
        for _ in 0..self.runs {
            for backlog in ROUND {
                drains[backlog].push(self.outage(BACKLOGS[backlog], Duration::ZERO).await);
                if backlog == 0 {
                    at_a_start.push(self.drain(BACKLOGS[0], Duration::ZERO, 0).await);
                }
            }
        }
        let mut add = |name: &str, drains: &[Drain]| {
            let (rate, cpu) = (middle(drains, |drain| drain.rate), middle(drains, |drain| drain.cpu_micros));
            let resident = middle(drains, |drain| drain.resident);
            self.figures.add(format!("{name}: delivered"), rate, "messages/s", Aim::None);
            self.figures.add(format!("{name}: CPU a message"), cpu, "µs", Aim::None);
            self.figures.add(format!("{name}: RSS peak"), resident, "MiB", Aim::AtMost(48.0));
            (rate, cpu)
        };
        let names = BACKLOGS.map(|messages| format!("backlog of {} after an outage", pretty(messages as f64)));
        let (rates, costs): (Vec<f64>, Vec<f64>) = names.iter().zip(&drains).map(|(name, drains)| add(name, drains)).unzip();
        add("backlog of 10 000 found at a start", &at_a_start);
        self.figures.add("backlogs after an outage: delivered, spread", spread(&rates), "%", Aim::AtMost(10.0));
        self.figures.add("backlogs after an outage: CPU, spread", spread(&costs), "%", Aim::AtMost(10.0));
    }

    /// An API that fails every 50th report: everything still arrives once and in order.
    async fn errors(&mut self) {
        for (millis, messages) in [(0, 20_000), (5, 8_000)] {
            let mut drains = Vec::new();
            for _ in 0..self.runs {
                drains.push(self.drain(messages, Duration::from_millis(millis), 50).await);
            }
            let name = format!("delivery, 2 % errors, API {millis} ms");
            self.figures.add(name, middle(&drains, |drain| drain.rate), "messages/s", Aim::None);
        }
    }

    /// The guard: small, side by side, and only gross ratios count.
    async fn guard(&mut self) {
        let messages = 20_000;
        let started = Instant::now();
        let mut ratios = Vec::new();
        for _ in 0..3 {
            let limit = self.limit(Client::Reqwest, Duration::ZERO, messages);
            let drain = self.drain(messages, Duration::ZERO, 0).await;
            ratios.push(drain.rate / limit.rate);
        }
        let ratio = ratios.iter().copied().fold(0.0, f64::max);
        let latency = Duration::from_millis(5);
        let limit = self.limit(Client::Reqwest, latency, 1_000);
        let slow = self.drain(1_000, latency, 0).await.rate / limit.rate;
        self.figures.add("guard: share of reqwest, API 0 ms", ratio, "", Aim::AtLeast(0.65 / 2.0));
        self.figures.add("guard: share of reqwest, API 5 ms", slow, "", Aim::AtLeast(0.95 / 2.0));
        println!("({:?})", started.elapsed());
        assert!(ratio >= 0.65 / 2.0 && slow >= 0.95 / 2.0, "delivery is less than half as fast as it should be beside reqwest");
    }

    fn write(&self) {
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().to_owned();
        let name = if self.small { "pipeline-small" } else { "pipeline" };
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let table = format!("{cores} cores, load average at the end {load}\n{}", self.figures.markdown());
        println!("\n{table}");
        std::fs::write(target.join(format!("{name}.md")), table).unwrap();
        std::fs::write(target.join(format!("{name}.json")), format!("{:#}\n", self.figures.json())).unwrap();
    }
}
