//! The peer: it answers what the server asks.

use rand_chacha::ChaCha20Rng;
use tracing::info;

use super::{EapType, Failed, Kind, MAX_ROUNDS, Means, Method, Packet, Proven, failed, mschapv2, shown, tls};

/// What to do about a packet of the server.
#[derive(Debug)]
pub enum Reaction {
    /// Send this packet.
    Say(Vec<u8>),
    /// It is over, and this is proven.
    Success(Proven),
}

/// Our side of an authentication.
pub struct Peer {
    identity: Vec<u8>,
    kinds: Vec<Kind>,
    method: Option<(Kind, Box<dyn Method + Send>)>,
    rounds: u32,
}

impl Peer {
    /// Somebody of this name, who takes these methods.
    pub fn new(identity: Vec<u8>, kinds: Vec<Kind>) -> Self {
        Self { identity, kinds, method: None, rounds: 0 }
    }

    /// Takes a packet of the server.
    ///
    /// # Errors
    /// When the server refuses us, or does what it must not.
    pub fn handle(
        &mut self,
        means: &dyn Means,
        rng: &mut ChaCha20Rng,
        octets: &[u8],
    ) -> Result<Reaction, Failed> {
        self.rounds += 1;
        if self.rounds > MAX_ROUNDS {
            return Err(failed(format!("EAP takes more than {MAX_ROUNDS} rounds")));
        }
        let outcome = self.method.as_ref().and_then(|(_, method)| method.outcome());
        match Packet::parse(octets).map_err(|error| failed(error.to_string()))? {
            Packet::Request { id, kind, data } => {
                let (kind, data) = self.answer(means, rng, (id, kind), &data)?;
                Ok(Reaction::Say(Packet::Response { id, kind, data }.emit()))
            }
            Packet::Success { .. } => match outcome {
                Some(Ok(proven)) => Ok(Reaction::Success(proven.clone())),
                _ => Err(failed("the server is content before the EAP method is at its end")),
            },
            Packet::Failure { .. } => match outcome {
                Some(Err(reason)) => Err(reason.clone()),
                _ => Err(failed(format!(
                    "received EAP failure: the server refuses '{}'",
                    shown(&self.identity)
                ))),
            },
            Packet::Response { .. } => Err(failed("the server answers instead of asking")),
        }
    }

    fn answer(
        &mut self,
        means: &dyn Means,
        rng: &mut ChaCha20Rng,
        (id, kind): (u8, EapType),
        data: &[u8],
    ) -> Result<(EapType, Vec<u8>), Failed> {
        if kind == EapType::NOTIFICATION {
            // What it says is for a user, of whom there is none here.
            return Ok((kind, Vec::new()));
        }
        if let Some((running, method)) = &mut self.method {
            if running.eap_type() != kind {
                return Err(failed(format!("the server changes from {} to {kind}", running.eap_type())));
            }
            let answer = method.handle(means, rng, data)?;
            return Ok((kind, answer.unwrap_or_default()));
        }
        if kind == EapType::IDENTITY {
            let name = shown(&self.identity);
            info!(target: "IKE", "server requested {kind} (id 0x{id:02X}), sending '{name}'");
            return Ok((kind, self.identity.clone()));
        }
        let Some(wanted) = self.kinds.iter().copied().find(|known| known.eap_type() == kind) else {
            let others: Vec<u8> = self.kinds.iter().map(|known| known.eap_type().0).collect();
            info!(target: "IKE", "server requested {kind} authentication (id 0x{id:02X}), which is not wanted, sending EAP_NAK");
            return Ok((EapType::NAK, others));
        };
        info!(target: "IKE", "server requested {kind} authentication (id 0x{id:02X})");
        let mut method: Box<dyn Method + Send> = match wanted {
            Kind::Mschapv2 => Box::new(mschapv2::Client::new(means, &self.identity)?),
            Kind::Tls => Box::new(tls::Tls::client(means)?),
        };
        let answer = method.handle(means, rng, data)?;
        self.method = Some((wanted, method));
        Ok((kind, answer.unwrap_or_default()))
    }
}
