//! The commands that ask a running daemon.

use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Failure, print};
use crate::protocol::{Reply, Request};

/// Views answer at once, unless something is very wrong.
const VIEW_TIMEOUT: Duration = Duration::from_secs(30);

/// Shows a view, once or again and again.
pub(super) fn view(socket: &Path, request: &Request, watch: Option<Duration>) -> Result<(), Failure> {
    loop {
        let mut session = Session::open(socket, request)?;
        let (mut shown, mut object) = (String::new(), json!({}));
        loop {
            match session.next(Some(Instant::now() + VIEW_TIMEOUT))? {
                Reply::Text { text, more } => {
                    shown += &text;
                    if !more {
                        break;
                    }
                }
                Reply::Data { data, more } => {
                    append(&mut object, data);
                    if !more {
                        shown = format!("{object}\n");
                        break;
                    }
                }
                Reply::Failed { reason } => return Err(Failure::Failed(reason)),
                other => return Err(unexpected(&other)),
            }
        }
        // On a terminal, each view takes the place of the one before.
        let clear = watch.is_some() && io::stdout().is_terminal();
        if !print(&format!("{}{shown}", if clear { "\x1b[H\x1b[2J" } else { "" })) {
            return Ok(());
        }
        match watch {
            Some(pause) => std::thread::sleep(pause),
            None => return Ok(()),
        }
    }
}

/// Puts the next part of a view behind what has come so far.
fn append(object: &mut Value, part: Value) {
    let Value::Object(fields) = part else { return };
    for (name, value) in fields {
        match (object.get_mut(&name), value) {
            (Some(Value::Array(list)), Value::Array(more)) => list.extend(more),
            (_, value) => object[name] = value,
        }
    }
}

/// Has something done and waits for it, with the daemon's log lines in the meantime.
pub(super) fn operate(
    socket: &Path,
    request: &Request,
    json: bool,
    timeout: Option<Duration>,
) -> Result<(), Failure> {
    let deadline = timeout.map(|t| Instant::now() + t);
    let mut session = Session::open(socket, request)?;
    let outcome = loop {
        match session.next(deadline) {
            Ok(Reply::Log { group, text }) if !json => {
                print(&format!("[{group}] {text}\n"));
            }
            Ok(Reply::Log { .. }) => {}
            Ok(Reply::Done) => break Ok(()),
            Ok(Reply::Failed { reason }) => break Err(Failure::Failed(reason)),
            Ok(other) => break Err(unexpected(&other)),
            Err(failure) => break Err(failure),
        }
    };
    if json {
        let reason = outcome.as_ref().err().map(ToString::to_string);
        print(&format!("{}\n", json!({ "ok": reason.is_none(), "reason": reason })));
    }
    outcome
}

/// Shows events until interrupted.
pub(super) fn monitor(socket: &Path, json: bool) -> Result<(), Failure> {
    let mut session = Session::open(socket, &Request::Monitor)?;
    loop {
        let shown = match session.next(None)? {
            Reply::Event { data, .. } if json => format!("{data}\n"),
            Reply::Event { text, .. } => format!("{text}\n"),
            Reply::Failed { reason } => return Err(Failure::Failed(reason)),
            other => return Err(unexpected(&other)),
        };
        if !print(&shown) {
            return Ok(());
        }
    }
}

struct Session {
    stream: BufReader<UnixStream>,
    /// What has come of the next line.
    line: Vec<u8>,
}

impl Session {
    fn open(socket: &Path, request: &Request) -> Result<Self, Failure> {
        let connect = || {
            let mut stream = UnixStream::connect(socket)?;
            let mut line = serde_json::to_vec(request)?;
            line.push(b'\n');
            stream.write_all(&line)?;
            Ok(Self { stream: BufReader::new(stream), line: Vec::new() })
        };
        connect().map_err(|error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => " (is the daemon running?)",
                _ => "",
            };
            Failure::Unreachable(format!("no daemon at {}: {error}{hint}", socket.display()))
        })
    }

    fn next(&mut self, deadline: Option<Instant>) -> Result<Reply, Failure> {
        let over = || Failure::Failed("still not done, and waiting no longer".to_string());
        loop {
            let left = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Err(over()),
                left => left,
            };
            let lost = |error: io::Error| Failure::Unreachable(format!("lost the daemon: {error}"));
            self.stream.get_ref().set_read_timeout(left).map_err(lost)?;
            match self.stream.read_until(b'\n', &mut self.line) {
                Ok(0) => return Err(Failure::Unreachable("the daemon closed the connection".to_string())),
                Ok(_) if self.line.ends_with(b"\n") => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
        let line = std::mem::take(&mut self.line);
        serde_json::from_slice(&line)
            .map_err(|e| Failure::Failed(format!("the daemon answered something else: {e}")))
    }
}

fn unexpected(reply: &Reply) -> Failure {
    Failure::Failed(format!("the daemon answered something else: {reply:?}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use super::*;
    use crate::protocol::Target;

    /// A daemon that gives the same answer to everybody.
    fn serve(name: &str, answer: &'static str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mobikex-client-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut line = String::new();
                BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                if answer.is_empty() {
                    std::thread::sleep(Duration::from_secs(2));
                }
            }
        });
        path
    }

    fn up(path: &Path) -> Result<(), Failure> {
        let target: Target = "home".parse().unwrap();
        operate(path, &Request::Up(target), false, Some(Duration::from_millis(300)))
    }

    #[test]
    fn outcomes_become_the_right_kind_of_failure() {
        let done =
            serve("done", "{\"type\":\"log\",\"group\":\"IKE\",\"text\":\"x\"}\n{\"type\":\"done\"}\n");
        assert!(up(&done).is_ok());
        let failed = serve("failed", "{\"type\":\"failed\",\"reason\":\"NO_PROPOSAL_CHOSEN\"}\n");
        assert!(matches!(up(&failed), Err(Failure::Failed(r)) if r == "NO_PROPOSAL_CHOSEN"));
        let cut = serve("cut", "{\"type\":\"log\"");
        assert!(matches!(up(&cut), Err(Failure::Unreachable(_))));
        let mute = serve("mute", "");
        assert!(matches!(up(&mute), Err(Failure::Failed(r)) if r.contains("not done")));
        assert!(matches!(up(Path::new("/nonexistent/socket")), Err(Failure::Unreachable(_))));
        for path in [done, failed, cut, mute] {
            std::fs::remove_file(path).unwrap();
        }
    }
}
