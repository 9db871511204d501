//! Two hundred daemons and one server that was down: nobody knocks in step, and nobody storms in.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::*;

const DAEMONS: usize = 200;
const CONCURRENCY: usize = 4;
/// How long the server takes for a report.
const REPORT: Duration = Duration::from_millis(15);
const REPORTS: usize = 100;

/// The server's view: when it was knocked at, and what each daemon has under way.
struct Server {
    up_at: Instant,
    knocks: Vec<Instant>,
    /// When a daemon had one more under way than ever since the outage.
    steps: Vec<Instant>,
    under_way: Vec<usize>,
    /// Per daemon: what was under way at each start of a report, the probe aside.
    loads: Vec<Vec<usize>>,
}

/// A generator of our own: the histogram is the same at every run.
fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    f64::from(u32::try_from(*state >> 33).unwrap()) / f64::from(1_u32 << 31)
}

/// A daemon as the scheduler drives its gate: all lose their connection at the same moment.
async fn daemon(number: usize, server: Rc<RefCell<Server>>) {
    let mut gate = Gate::new(CONCURRENCY, Backoff::new(Duration::from_secs(1), Duration::from_secs(60)));
    let mut seed = number as u64 * 7_919 + 1;
    for _ in 0..4 {
        random(&mut seed);
    }
    gate.later("connection reset", true, None, Instant::now().into_std(), random(&mut seed));
    while let Some(at) = gate.next_probe() {
        sleep_until(Instant::from_std(at)).await;
        assert_eq!(gate.start_probe(at), Some(Probe::OldestMessage));
        server.borrow_mut().knocks.push(Instant::now());
        sleep(Duration::from_millis(15)).await;
        gate.probe_over();
        if Instant::now() >= server.borrow().up_at {
            assert_eq!(gate.accepted(), Change::Opened);
        } else {
            gate.later("connection refused", true, None, Instant::now().into_std(), random(&mut seed));
        }
    }
    let mut work = JoinSet::new();
    let (mut left, mut accepted) = (REPORTS, 0);
    while left > 0 || !work.is_empty() {
        while left > 0 && work.len() < gate.allowed() {
            left -= 1;
            let mut server = server.borrow_mut();
            server.under_way[number] += 1;
            let now = server.under_way[number];
            if server.loads[number].iter().all(|&before| before < now) {
                server.steps.push(Instant::now());
            }
            server.loads[number].push(now);
            work.spawn_local(sleep(REPORT));
        }
        work.join_next().await;
        server.borrow_mut().under_way[number] -= 1;
        accepted += 1;
        gate.grow(accepted, work.len() + 1);
    }
}

/// How many of these instants fall into each second after `start`.
fn histogram(instants: &[Instant], start: Instant) -> Vec<usize> {
    let mut seconds = Vec::new();
    for at in instants.iter().filter(|at| **at >= start) {
        let second = usize::try_from((*at - start).as_secs()).unwrap();
        seconds.resize(seconds.len().max(second + 1), 0);
        seconds[second] += 1;
    }
    seconds
}

#[tokio::test(start_paused = true)]
async fn two_hundred_daemons_neither_knock_in_step_nor_storm_in_after_an_outage() {
    for outage in [Duration::from_secs(300), Duration::from_secs(1_800), Duration::from_secs(4 * 3_600)] {
        let start = Instant::now();
        let up_at = start + outage;
        let (knocks, steps, under_way, loads) = (Vec::new(), Vec::new(), vec![0; DAEMONS], vec![Vec::new(); DAEMONS]);
        let server = Rc::new(RefCell::new(Server { up_at, knocks, steps, under_way, loads }));
        let fleet = LocalSet::new();
        for number in 0..DAEMONS {
            fleet.spawn_local(daemon(number, Rc::clone(&server)));
        }
        fleet.await;
        let server = server.borrow();

        // A daemon alone knocks every 45 s: 200 of them 4.4 times a second, if they are not in step.
        let settled = histogram(&server.knocks, start + Duration::from_secs(180));
        let busiest = settled.iter().max().copied().unwrap();
        assert!(busiest <= DAEMONS / 10, "{busiest} of {DAEMONS} knocked within one second: {settled:?}");
        let quiet = outage.saturating_sub(Duration::from_secs(180));
        let rate = settled.iter().sum::<usize>() as u64 / quiet.as_secs().max(1);
        assert!(rate <= 6, "{rate} knocks a second");

        // Afterwards everybody comes within the longest backoff, one probe each, a few in any second.
        let returning = histogram(&server.knocks, up_at);
        assert_eq!(returning.iter().sum::<usize>(), DAEMONS, "one probe each: {returning:?}");
        assert!(returning.len() <= 61 && returning.iter().all(|&second| second <= DAEMONS / 10), "{returning:?}");
        let steps = histogram(&server.steps, up_at);
        assert_eq!(steps.iter().sum::<usize>(), DAEMONS * CONCURRENCY, "in the end all at full speed");
        assert!(steps.iter().all(|&second| second <= DAEMONS * CONCURRENCY / 10), "{steps:?}");
        for loads in &server.loads {
            let mut most = 0;
            for (index, &now) in loads.iter().enumerate() {
                assert!(now <= most + 1, "concurrency grows one by one: {loads:?}");
                // One more each time that the server has answered all that it had.
                assert!(index >= now * (now - 1) / 2, "the {index}th with {now} under way: {loads:?}");
                most = most.max(now);
            }
            assert_eq!(most, CONCURRENCY, "in the end at full speed");
        }
    }
}
