//! The Unix socket on which commands arrive. Clients, their lines and what waits for them are bounded, so that
//! no client can hold up the daemon.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use crate::protocol::{REQUEST_MAX, Reply, Request};

/// The most clients at a time.
const CLIENTS_MAX: usize = 64;

/// A client that leaves more than this unread is cut off. A single answer may be longer.
const BACKLOG_MAX: usize = 1 << 20;

/// Names a client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(usize);

/// The listening socket and its clients.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    clients: BTreeMap<usize, Client>,
    next_token: usize,
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// It will say nothing more: close once the output is out, unless more of that is to come.
    finished: bool,
    expects_more: bool,
}

impl ControlSocket {
    /// Listens at `path`, readable and writable by the owner alone, or also by `group`. Replaces the socket that
    /// a crashed daemon left; one that answers is an error. Tokens from `first_client` on name clients.
    pub fn bind(path: &Path, group: Option<u32>, listener: Token, registry: &Registry) -> io::Result<Self> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            let text = format!("another daemon answers at {}", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        // Made in a directory that only we can enter and then moved to its place, the socket is at no time open
        // to more people than it should be.
        let mut private = path.as_os_str().to_owned();
        private.push(format!(".{}", std::process::id()));
        let private = PathBuf::from(private);
        DirBuilder::new().mode(0o700).create(&private)?;
        let inside = private.join("socket");
        let made = (|| -> io::Result<UnixListener> {
            let mut socket = UnixListener::bind(&inside)?;
            if group.is_some() {
                std::os::unix::fs::chown(&inside, None, group)?;
            }
            let mode = if group.is_some() { 0o660 } else { 0o600 };
            std::fs::set_permissions(&inside, Permissions::from_mode(mode))?;
            std::fs::rename(&inside, path)?;
            registry.register(&mut socket, listener, Interest::READABLE)?;
            Ok(socket)
        })();
        let _ = std::fs::remove_file(&inside);
        let _ = std::fs::remove_dir(&private);
        Ok(Self {
            listener: made?,
            path: path.to_path_buf(),
            clients: BTreeMap::new(),
            next_token: listener.0 + 1,
        })
    }

    /// Whether the token is one of our clients'.
    pub fn client(&self, token: Token) -> Option<ClientId> {
        self.clients.contains_key(&token.0).then_some(ClientId(token.0))
    }

    /// Takes in waiting clients.
    pub fn accept(&mut self, registry: &Registry) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            if self.clients.len() >= CLIENTS_MAX {
                // Best effort: the buffer of a new connection has room for a line.
                let _ = stream.write(&line(&Reply::Failed { reason: "too many clients".into() }));
                continue;
            }
            let token = self.next_token;
            self.next_token += 1;
            let interest = Interest::READABLE | Interest::WRITABLE;
            if registry.register(&mut stream, Token(token), interest).is_ok() {
                let (input, output) = (Vec::new(), Vec::new());
                self.clients
                    .insert(token, Client { stream, input, output, finished: false, expects_more: false });
            }
        }
    }

    /// Reads what a client has sent. `None` when it has left.
    pub fn read(&mut self, id: ClientId) -> Option<Vec<Result<Request, String>>> {
        let client = self.clients.get_mut(&id.0)?;
        let mut requests = Vec::new();
        let mut chunk = [0; REQUEST_MAX];
        loop {
            match client.stream.read(&mut chunk) {
                Ok(0) => {
                    // It may have closed only its writing end and still want the answers.
                    client.finished = true;
                    if requests.is_empty() && client.output.is_empty() && !client.expects_more {
                        self.clients.remove(&id.0);
                        return None;
                    }
                    return Some(requests);
                }
                Ok(len) => client.input.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(requests),
                Err(_) => {
                    self.clients.remove(&id.0);
                    return None;
                }
            }
            while let Some(end) = client.input.iter().position(|b| *b == b'\n') {
                let text: Vec<u8> = client.input.drain(..=end).collect();
                requests.push(serde_json::from_slice(&text).map_err(|e| format!("bad request: {e}")));
            }
            if client.input.len() >= REQUEST_MAX || requests.len() > CLIENTS_MAX {
                client.input.clear();
                requests.push(Err("bad request: too long".into()));
                client.finished = true;
                return Some(requests);
            }
        }
    }

    /// Sends a line; false when the client is gone or too slow, which it then is for good.
    pub fn send(&mut self, id: ClientId, reply: &Reply) -> bool {
        let Some(client) = self.clients.get_mut(&id.0) else { return false };
        if client.output.len() > BACKLOG_MAX {
            self.clients.remove(&id.0);
            return false;
        }
        client.output.extend(line(reply));
        client.expects_more =
            matches!(reply, Reply::Text { more: true, .. } | Reply::Data { more: true, .. });
        self.flush(id)
    }

    /// Whether a client has read everything.
    pub fn is_idle(&self, id: ClientId) -> bool {
        self.clients.get(&id.0).is_some_and(|client| client.output.is_empty())
    }

    /// Writes what waits, as far as the client reads; false when it is gone.
    pub fn flush(&mut self, id: ClientId) -> bool {
        let Some(client) = self.clients.get_mut(&id.0) else { return false };
        let mut written = 0;
        let gone = loop {
            if written == client.output.len() {
                break client.finished && !client.expects_more;
            }
            match client.stream.write(&client.output[written..]) {
                Ok(len) => written += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break true,
            }
        };
        client.output.drain(..written);
        if gone {
            self.clients.remove(&id.0);
        }
        !gone
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn line(reply: &Reply) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(reply).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixStream as Blocking;
    use std::time::Duration;

    use mio::{Events, Poll};

    use super::*;

    struct Fixture {
        poll: Poll,
        socket: ControlSocket,
        path: PathBuf,
    }

    fn fixture(name: &str) -> Fixture {
        let path = std::env::temp_dir().join(format!("mobikex-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let poll = Poll::new().unwrap();
        let socket = ControlSocket::bind(&path, None, Token(10), poll.registry()).unwrap();
        Fixture { poll, socket, path }
    }

    impl Fixture {
        /// Runs the loop until requests arrive; answers each with its own text.
        fn turn(&mut self) -> Vec<(ClientId, Result<Request, String>)> {
            let mut events = Events::with_capacity(16);
            let mut found = Vec::new();
            self.poll.poll(&mut events, Some(Duration::from_secs(2))).unwrap();
            for event in &events {
                if event.token() == Token(10) {
                    self.socket.accept(self.poll.registry());
                } else if let Some(id) = self.socket.client(event.token()) {
                    let requests = self.socket.read(id).unwrap_or_default();
                    found.extend(requests.into_iter().map(|r| (id, r)));
                }
            }
            found
        }
    }

    #[test]
    fn requests_come_as_lines_and_nonsense_is_answered() {
        let mut f = fixture("lines");
        assert_eq!(std::fs::metadata(&f.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(ControlSocket::bind(&f.path, None, Token(99), f.poll.registry()).is_err());
        let mut client = Blocking::connect(&f.path).unwrap();
        client.write_all(b"{\"command\":\"monitor\"}\nnonsense\n{\"comm").unwrap();
        let mut requests = Vec::new();
        while requests.len() < 2 {
            requests.extend(f.turn());
        }
        assert_eq!(requests[0].1, Ok(Request::Monitor));
        assert!(requests[1].1.as_ref().is_err_and(|e| e.starts_with("bad request")));
        client.write_all(b"and\":\"sas\"}\n").unwrap();
        let (id, request) = f.turn().remove(0);
        assert_eq!(request, Ok(Request::Sas { json: false }));
        assert!(f.socket.send(id, &Reply::Done));
        let mut answer = String::new();
        BufReader::new(&client).read_line(&mut answer).unwrap();
        assert_eq!(answer, "{\"type\":\"done\"}\n");
        drop(client);
        f.turn();
        assert!(!f.socket.send(id, &Reply::Done), "the client is known to be gone");
        let path = f.path.clone();
        drop(f);
        assert!(!path.exists());
    }

    #[test]
    fn a_client_that_asks_once_gets_every_part() {
        let mut f = fixture("parts");
        let mut client = Blocking::connect(&f.path).unwrap();
        client.write_all(b"{\"command\":\"sas\"}\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut requests = Vec::new();
        while requests.is_empty() {
            requests.extend(f.turn());
        }
        let id = requests[0].0;
        assert!(f.socket.send(id, &Reply::Text { text: "one".into(), more: true }));
        assert!(f.socket.is_idle(id) && f.socket.read(id).is_some(), "it is not forgotten between the parts");
        assert!(!f.socket.send(id, &Reply::Text { text: "two".into(), more: false }), "nothing more to say");
        let lines: Vec<_> = BufReader::new(&client).lines().map(Result::unwrap).collect();
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn an_endless_line_and_a_deaf_client_are_cut_off() {
        let mut f = fixture("limits");
        let mut talker = Blocking::connect(&f.path).unwrap();
        talker.write_all(&[b'x'; REQUEST_MAX + 10]).unwrap();
        let mut requests = Vec::new();
        while requests.is_empty() {
            requests.extend(f.turn());
        }
        let (id, request) = requests.remove(0);
        assert_eq!(request, Err("bad request: too long".to_string()));
        f.socket.send(id, &Reply::Failed { reason: "too long".into() });
        assert!(f.socket.client(Token(id.0)).is_none(), "closed after its answer");

        let mut deaf = Blocking::connect(&f.path).unwrap();
        deaf.write_all(b"{\"command\":\"monitor\"}\n").unwrap();
        let mut requests = Vec::new();
        while requests.is_empty() {
            requests.extend(f.turn());
        }
        let id = requests[0].0;
        let text = Reply::Text { text: "x".repeat(100_000), more: false };
        let sent = (0..100).take_while(|_| f.socket.send(id, &text)).count();
        assert!((5..40).contains(&sent), "{sent}");
    }
}
