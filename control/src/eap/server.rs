//! The server: it asks who the peer is, and for a proof.

use mobikex_common::wire::ike::Identification;
use rand_chacha::ChaCha20Rng;
use rand_core::Rng;
use tracing::info;

use super::{
    EapType, Failed, Kind, MAX_IDENTITY, MAX_ROUNDS, Means, Method, Packet, Proven, failed, identification,
    mschapv2, shown, tls,
};

/// How the peer's name becomes known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asks {
    /// By EAP-Identity; with what it has to be, if that is fixed.
    Identity(Option<Vec<u8>>),
    /// It has to be this one, without a question.
    Known(Vec<u8>),
    /// It is the one that the method proves.
    Nothing,
}

/// What to send to the peer.
#[derive(Debug)]
pub enum Turn {
    /// Another request.
    Request(Vec<u8>),
    /// EAP Success: this user has proven itself.
    Success(Vec<u8>, Identification, Proven),
    /// EAP Failure.
    Failure(Vec<u8>, Failed),
}

/// Our side of an authentication.
pub struct Server {
    asks: Asks,
    /// The name that the peer has given or must have.
    user: Option<Vec<u8>>,
    /// It is not one that may be here.
    stranger: bool,
    /// Methods that have not been tried, the preferred one first.
    left: Vec<Kind>,
    method: Option<Running>,
    id: u8,
    rounds: u32,
}

struct Running {
    kind: Kind,
    method: Box<dyn Method + Send>,
    /// The peer has gone into it, so that it cannot be refused any more (RFC 3748 5.3.1).
    begun: bool,
}

impl Server {
    /// A server that takes these methods, at least one of them, and its first request.
    ///
    /// # Errors
    /// When what the method needs is not there.
    pub fn start(
        asks: Asks,
        kinds: &[Kind],
        means: &dyn Means,
        rng: &mut ChaCha20Rng,
    ) -> Result<(Self, Vec<u8>), Failed> {
        let user = if let Asks::Known(name) = &asks { Some(name.clone()) } else { None };
        let id = rng.next_u32() as u8;
        let left = kinds.to_vec();
        let mut server = Self { asks, user, stranger: false, left, method: None, id, rounds: 0 };
        let first = if matches!(server.asks, Asks::Identity(_)) {
            info!(target: "IKE", "initiating {} method (id 0x{id:02X})", EapType::IDENTITY);
            server.request(EapType::IDENTITY, Vec::new())
        } else {
            server.begin(means, rng)?
        };
        Ok((server, first))
    }

    fn request(&self, kind: EapType, data: Vec<u8>) -> Vec<u8> {
        Packet::Request { id: self.id, kind, data }.emit()
    }

    /// The first request of the method that is next.
    fn begin(&mut self, means: &dyn Means, rng: &mut ChaCha20Rng) -> Result<Vec<u8>, Failed> {
        if self.left.is_empty() {
            return Err(failed("no EAP method in common"));
        }
        let kind = self.left.remove(0);
        let (method, first): (Box<dyn Method + Send>, Vec<u8>) = match kind {
            Kind::Mschapv2 => {
                let (host, first) = mschapv2::Host::start(rng, self.user.as_deref(), self.stranger);
                (Box::new(host), first)
            }
            Kind::Tls => {
                let user = self.user.as_deref().map(identification);
                let (host, first) = tls::Tls::server(means, user.as_ref())?;
                (Box::new(host), first)
            }
        };
        info!(target: "IKE", "initiating {} method (id 0x{:02X})", kind.eap_type(), self.id);
        self.method = Some(Running { kind, method, begun: false });
        Ok(self.request(kind.eap_type(), first))
    }

    /// Takes a packet of the peer.
    pub fn handle(&mut self, means: &dyn Means, rng: &mut ChaCha20Rng, octets: &[u8]) -> Turn {
        match self.next(means, rng, octets) {
            Ok(turn) => turn,
            Err(reason) => Turn::Failure(Packet::Failure { id: self.id }.emit(), reason),
        }
    }

    fn next(&mut self, means: &dyn Means, rng: &mut ChaCha20Rng, octets: &[u8]) -> Result<Turn, Failed> {
        self.rounds += 1;
        if self.rounds > MAX_ROUNDS {
            return Err(failed(format!("EAP takes more than {MAX_ROUNDS} rounds")));
        }
        let packet = Packet::parse(octets).map_err(|error| failed(error.to_string()))?;
        let Packet::Response { id, kind, data } = packet else {
            return Err(failed("the peer does not answer the request"));
        };
        if id != self.id {
            return Err(failed("the peer answers another request"));
        }
        let Some(running) = &mut self.method else {
            if kind != EapType::IDENTITY || !(1..=MAX_IDENTITY).contains(&data.len()) {
                return Err(failed("the peer does not say who it is"));
            }
            self.identified(data);
            self.id = self.id.wrapping_add(1);
            return self.begin(means, rng).map(Turn::Request);
        };
        if kind == EapType::NAK && !running.begun {
            info!(target: "IKE", "received {kind}, the peer does not want {}", running.kind.eap_type());
            self.left.retain(|other| data.contains(&other.eap_type().0));
            self.id = self.id.wrapping_add(1);
            return self.begin(means, rng).map(Turn::Request);
        }
        let own = running.kind.eap_type();
        if kind != own {
            return Err(failed(format!("the peer answers {own} with {kind}")));
        }
        running.begun = true;
        if let Some(data) = running.method.handle(means, rng, &data)? {
            self.id = self.id.wrapping_add(1);
            return Ok(Turn::Request(self.request(own, data)));
        }
        match running.method.outcome() {
            Some(Ok(_)) if self.stranger => {
                let user = shown(self.user.as_deref().unwrap_or_default());
                Err(failed(format!("user '{user}' is not who the connection expects")))
            }
            Some(Ok(proven)) => {
                let user = self.user.as_deref().map(identification).or_else(|| proven.name.clone());
                let user = user.ok_or_else(|| failed("the EAP method proves nobody"))?;
                Ok(Turn::Success(Packet::Success { id: self.id }.emit(), user, proven.clone()))
            }
            Some(Err(reason)) => Err(reason.clone()),
            _ => Err(failed("the EAP method has not come to its end")),
        }
    }

    /// A name that may not be here goes through the same steps as one that may.
    fn identified(&mut self, name: Vec<u8>) {
        info!(target: "IKE", "received EAP identity '{}'", shown(&name));
        if let Asks::Identity(Some(only)) = &self.asks {
            self.stranger = *only != name;
        }
        self.user = Some(name);
    }
}
