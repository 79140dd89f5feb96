//! Runs the scripts of operators (`updown`), beside the control thread.
//!
//! A command line goes to `/bin/sh -c`; what a peer may have chosen goes into its environment and nowhere else. A script that
//! fails, hangs or writes without end costs a line or some in the log, and nothing more.

use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, thread};

use mio::unix::pipe::Receiver;
use mio::{Events, Interest, Poll, Token};
use mobikex_dataplane::io::kill_group;
use tracing::{debug, info, warn};

use super::turns::{Job, Turns};
use crate::ike::{Run, Script};

/// Scripts that run at once.
const AT_ONCE: usize = 8;
/// How long one may run.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the output of a script is waited for that has ended, and has left somebody behind who could still write.
const AFTERMATH: Duration = Duration::from_secs(1);
/// How often an ended script, or the end of all, is looked for while there is no output.
const LOOK: Duration = Duration::from_millis(100);
/// What is shown of the output: octets of a line, and lines.
const LINE: usize = 200;
const LINES: usize = 64;
/// Where commands are found if nobody has told the daemon.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The scripts that run and wait.
pub(super) struct Scripts(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// A script has ended.
    ended: Condvar,
    /// What all scripts are told.
    base: Vec<(String, String)>,
    limit: Duration,
}

#[derive(Default)]
struct State {
    turns: Turns,
    threads: usize,
    /// When everything has to have ended.
    end_at: Option<Instant>,
}

impl Scripts {
    /// `tun` is the device through which protected traffic goes.
    pub(super) fn new(tun: &str) -> Self {
        Self::with_limit(tun, LIMIT)
    }

    fn with_limit(tun: &str, limit: Duration) -> Self {
        let path = env::var("PATH").ok().filter(|path| !path.is_empty());
        let base = vec![
            ("PATH".to_string(), path.unwrap_or_else(|| PATH.to_string())),
            ("MOBIKEX_TUN".to_string(), tun.to_string()),
        ];
        let (state, ended) = (Mutex::default(), Condvar::new());
        Self(Arc::new(Shared { state, ended, base, limit }))
    }

    /// Has a script run when its turn comes. Returns at once.
    pub(super) fn run(&self, up: bool, script: Arc<Script>) {
        let child = script.child.clone();
        let mut state = self.0.lock();
        if !state.turns.push(Job { up, script }) {
            return info!(target: "CHD", "updown of {child} is not run: it went down before its turn came");
        }
        if state.threads < AT_ONCE {
            let shared = Arc::clone(&self.0);
            match thread::Builder::new().name("updown".into()).spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                // It runs with the next one that can.
                Err(error) => warn!(target: "CHD", "updown of {child} cannot run yet: {error}"),
            }
        }
    }

    /// From now on everything has to end within a time.
    pub(super) fn end_within(&self, time: Duration) {
        self.0.lock().end_at = Some(Instant::now() + time);
    }

    /// Waits a little; true when everything has run, or its time is over.
    pub(super) fn have_ended(&self, pause: Duration) -> bool {
        let state = self.0.lock();
        if state.turns.is_empty() {
            return true;
        }
        let (mut state, _) = self.0.ended.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner);
        // Those that run are killed at that time, which takes a moment.
        let over = state.end_at.is_some_and(|at| at + 5 * LOOK <= Instant::now());
        if over {
            warn!(target: "CHD", "there is no time for {} more updown scripts", state.turns.clear());
        }
        over || state.turns.is_empty()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs what has its turn until there is nothing.
    fn work(&self) {
        let mut state = self.lock();
        while let Some(Job { up, script }) = state.turns.next() {
            drop(state);
            for run in script.runs(up).iter().take_while(|_| !self.is_over()) {
                self.report(&script, run);
            }
            state = self.lock();
            state.turns.done(&script.turn);
            self.ended.notify_all();
        }
        state.threads -= 1;
    }

    /// Nothing more is to be begun.
    fn is_over(&self) -> bool {
        self.lock().end_at.is_some_and(|at| at <= Instant::now())
    }

    /// Runs a script once and tells how that went.
    fn report(&self, script: &Script, run: &Run) {
        let what = format!("updown '{}' of {}", run.verb, script.child);
        debug!(target: "CHD", "{what}: {}", script.command);
        match self.once(script, run, &what) {
            Ok(Outcome::Ended(status)) if status.success() => {}
            Ok(Outcome::Ended(status)) => warn!(target: "CHD", "{what} failed: {status}"),
            Ok(Outcome::Killed(time)) => {
                warn!(target: "CHD", "{what} was killed: it had not ended after {} s", time.as_secs());
            }
            Err(error) => warn!(target: "CHD", "{what} cannot be run: {error}"),
        }
    }

    fn once(&self, script: &Script, run: &Run, what: &str) -> io::Result<Outcome> {
        let begun = Instant::now();
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(&script.command).current_dir("/");
        command.env_clear().envs(self.base.iter().cloned()).envs(run.variables.iter().cloned());
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        // Of its own, so that all of it can be ended.
        let mut child = command.process_group(0).spawn()?;
        // The other end of the pipe is the script's alone.
        drop(command);
        let mut lines = Lines::default();
        let show = |line: &str| info!(target: "CHD", "{what}: {line}");
        let watched = self.watch(&mut child, reader.into(), begun, |octets| lines.take(octets, show));
        lines.end(show);
        // Whoever has been waited for is nobody's business any more.
        if !matches!(watched, Ok(Outcome::Ended(_))) && child.try_wait()?.is_none() {
            kill_group(child.id())?;
            child.wait()?;
        }
        watched
    }

    /// Reads what a script writes, until it has ended or its time is over.
    fn watch(
        &self,
        child: &mut Child,
        output: OwnedFd,
        begun: Instant,
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<Outcome> {
        let mut poll = Poll::new()?;
        let mut output = Receiver::from(ChildStdout::from(output));
        output.set_nonblocking(true)?;
        poll.registry().register(&mut output, Token(0), Interest::READABLE)?;
        let mut events = Events::with_capacity(1);
        let mut buffer = [0; 4096];
        let (mut open, mut ended) = (true, None);
        loop {
            let now = Instant::now();
            if ended.is_none() {
                ended = child.try_wait()?.map(|status| (status, now));
            }
            if open {
                match output.read(&mut buffer) {
                    Ok(0) => open = false,
                    Ok(count) => take(&buffer[..count]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        poll.poll(&mut events, Some(LOOK)).or_else(unless_interrupted)?;
                    }
                    Err(error) => return Err(error),
                }
            } else if ended.is_none() {
                // Whoever closes its output mostly ends next.
                thread::sleep(
                    Duration::from_millis(1).max(now.saturating_duration_since(begun) / 16).min(LOOK),
                );
            }
            if let Some((status, at)) = ended
                && (!open || at + AFTERMATH <= now)
            {
                return Ok(Outcome::Ended(status));
            }
            let end_at = self.lock().end_at;
            let limit = begun + self.limit;
            if ended.is_none() && end_at.map_or(limit, |at| at.min(limit)) <= now {
                return Ok(Outcome::Killed(now - begun));
            }
        }
    }
}

fn unless_interrupted(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// How a script has ended.
enum Outcome {
    Ended(ExitStatus),
    /// After so long.
    Killed(Duration),
}

/// The output of a script as lines of the log.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    /// Lines so far.
    count: usize,
}

impl Lines {
    fn take(&mut self, octets: &[u8], mut show: impl FnMut(&str)) {
        for octet in octets {
            if *octet == b'\n' {
                self.show(&mut show);
            } else if self.line.len() <= LINE {
                self.line.push(*octet);
            }
        }
    }

    /// The last line may have no end.
    fn end(&mut self, mut show: impl FnMut(&str)) {
        if !self.line.is_empty() {
            self.show(&mut show);
        }
    }

    fn show(&mut self, show: &mut impl FnMut(&str)) {
        self.count += 1;
        let more = if self.line.len() > LINE { "..." } else { "" };
        let shown = String::from_utf8_lossy(&self.line[..self.line.len().min(LINE)]);
        // What steers a terminal does not belong into a log.
        let shown = shown.trim_end_matches('\r').replace(char::is_control, "?");
        self.line.clear();
        match self.count.cmp(&LINES) {
            std::cmp::Ordering::Less => show(&format!("{shown}{more}")),
            std::cmp::Ordering::Equal => show("further output is not shown"),
            std::cmp::Ordering::Greater => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn file(name: &str) -> PathBuf {
        let path = env::temp_dir().join(format!("mobikex-updown-{name}-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    fn wait(scripts: &Scripts) {
        while !scripts.have_ended(Duration::from_millis(50)) {}
    }

    /// What a script leaves in a file.
    fn left_by(name: &str, command: &str) -> String {
        let path = file(name);
        let scripts = Scripts::with_limit("tun7", SOON);
        scripts.run(true, Script::of("a", &format!("({command}) > {}", path.display())));
        wait(&scripts);
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        text
    }

    #[test]
    fn the_environment_is_all_that_a_script_is_told() {
        let text = left_by("env", "env | sed 's/=.*//' | sort; pwd; echo $MOBIKEX_TUN $PLUTO_VERB");
        let own = ["MOBIKEX_TUN", "PATH", "PLUTO_MY_CLIENT", "PLUTO_PEER_CLIENT", "PLUTO_VERB"];
        assert!(own.iter().all(|name| text.lines().any(|line| line == *name)), "{text}");
        // What the shell itself sets.
        let odd = |line: &&str| {
            !line.starts_with("PLUTO_")
                && !own.contains(line)
                && !["OLDPWD", "PWD", "SHLVL", "_"].contains(line)
        };
        assert_eq!(text.lines().filter(odd).collect::<Vec<_>>(), ["/", "tun7 up-client"]);
    }

    #[test]
    fn b10_what_a_peer_calls_itself_is_no_shell_syntax() {
        let path = file("b10");
        let id = format!("$(touch {0});touch {0}\n`touch {0}`", path.display());
        let mut script = Script::of("a", "test -n \"$PLUTO_PEER_ID\"; echo $PLUTO_PEER_ID > /dev/null");
        Arc::get_mut(&mut script).unwrap().tell("PLUTO_PEER_ID", &id);
        let scripts = Scripts::with_limit("tun7", SOON);
        scripts.run(true, script);
        wait(&scripts);
        assert!(!path.exists());
    }

    #[test]
    fn a_script_gets_no_file_of_ours_and_no_blocked_signal() {
        let _held = (fs::File::open("/dev/zero").unwrap(), Poll::new().unwrap(), io::pipe().unwrap());
        let text = left_by("fds", "ls -l /proc/$$/fd; grep SigBlk /proc/$$/status");
        let ours = |line: &&str| line.contains("/dev/zero") || line.contains("anon_inode");
        assert_eq!(text.lines().find(ours), None, "{text}");
        assert!(text.ends_with("SigBlk:\t0000000000000000\n"), "{text}");
    }

    #[test]
    fn what_belongs_together_runs_in_order() {
        let path = file("order");
        let scripts = Scripts::with_limit("tun7", SOON);
        let script = Script::of("a", &format!("sleep 0.1; echo $PLUTO_VERB >> {}", path.display()));
        scripts.run(true, Arc::clone(&script));
        // It runs, so that the end has to be told as well.
        while !path.exists() {
            thread::sleep(Duration::from_millis(5));
        }
        let again = Script::of("a", &format!("echo again >> {}", path.display()));
        scripts.run(false, script);
        scripts.run(true, again);
        wait(&scripts);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "up-client\ndown-client\nagain\n");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn one_that_hangs_is_killed_with_all_that_it_has_started() {
        let path = file("hangs");
        let scripts = Scripts::with_limit("tun7", Duration::from_millis(300));
        let pids = path.display();
        scripts.run(true, Script::of("a", &format!("sleep 1000 & echo $! > {pids}; sleep 1000")));
        // Another one does not wait for it.
        let other = file("other");
        scripts.run(true, Script::of("b", &format!("touch {}", other.display())));
        wait(&scripts);
        assert!(other.exists());
        let pid = fs::read_to_string(&path).unwrap();
        let status = format!("/proc/{}/status", pid.trim());
        let gone = || fs::read_to_string(&status).map_or(true, |text| text.contains("State:\tZ"));
        while !gone() {
            thread::sleep(Duration::from_millis(5));
        }
        [path, other].iter().for_each(|path| fs::remove_file(path).unwrap());
    }

    #[test]
    fn at_the_end_there_is_a_time_for_all_of_them() {
        let scripts = Scripts::with_limit("tun7", SOON);
        for turn in 0..2 * AT_ONCE {
            scripts.run(true, Script::of(&turn.to_string(), "sleep 1000"));
        }
        scripts.end_within(Duration::from_millis(200));
        wait(&scripts);
        let state = scripts.0.lock();
        assert!(state.end_at.is_some_and(|at| at <= Instant::now()));
    }

    #[test]
    fn what_it_leaves_behind_is_not_waited_for() {
        let scripts = Scripts::with_limit("tun7", SOON);
        scripts.run(true, Script::of("a", "sleep 5 &"));
        let begun = Instant::now();
        wait(&scripts);
        // Not a measurement: the one left behind holds the output for longer.
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn output_is_shown_in_lines_and_within_bounds() {
        let mut shown = Vec::new();
        let mut lines = Lines::default();
        lines.take(b"one\r\ntw", |line| shown.push(line.to_string()));
        lines.take(b"o\x1b[31m\n\xff\n", |line| shown.push(line.to_string()));
        lines.take(&[b'x'; 10_000], |line| shown.push(line.to_string()));
        lines.end(|line| shown.push(line.to_string()));
        assert_eq!(shown[..3], ["one", "two?[31m", "\u{fffd}"]);
        assert_eq!(shown[3], format!("{}...", "x".repeat(LINE)));
        assert!(lines.line.capacity() < 1000);
        for _ in 0..1000 {
            lines.take(b"more\n", |line| shown.push(line.to_string()));
        }
        assert_eq!((shown.len(), shown[LINES - 1].as_str()), (LINES, "further output is not shown"));
    }
}
