//! EAP-MSCHAPv2 (draft-kamath-pppext-eap-mschapv2): each side shows the other that it knows the password.

use mobikex_common::crypto::Secret;
use mobikex_common::wire::ike::Identification;
use rand_chacha::ChaCha20Rng;
use rand_core::Rng;
use tracing::info;

use super::nt::{Attempt, NtHash, msk};
use super::packet::MAX_IDENTITY;
use super::{Failed, Kind, Means, Method, Proven, failed, identification, shown};

const CHALLENGE: u8 = 1;
const RESPONSE: u8 = 2;
const SUCCESS: u8 = 3;
const FAILURE: u8 = 4;

/// Passwords that a peer may try.
const ATTEMPTS: u32 = 3;
/// What a server calls itself; nobody looks at it.
const SERVER_NAME: &[u8] = b"mobikex";

/// A message with a header: operation, identifier, and a length that counts all of it.
fn message(op: u8, id: u8, body: &[&[u8]]) -> Vec<u8> {
    let length = 4 + body.iter().map(|part| part.len()).sum::<usize>();
    let mut out = vec![op, id];
    out.extend((length as u16).to_be_bytes());
    body.iter().for_each(|part| out.extend(*part));
    out
}

/// Operation, identifier and body of a message with a header.
fn read(data: &[u8]) -> Result<(u8, u8, &[u8]), Failed> {
    match data {
        &[op, id, high, low, ref body @ ..] if usize::from(u16::from_be_bytes([high, low])) == data.len() => {
            Ok((op, id, body))
        }
        _ => Err(failed("a message of EAP-MSCHAPv2 has the wrong length")),
    }
}

fn random<const N: usize>(rng: &mut ChaCha20Rng) -> [u8; N] {
    let mut out = [0; N];
    rng.fill_bytes(&mut out);
    out
}

/// The name without the domain that may stand before it.
fn without_domain(name: &[u8]) -> &[u8] {
    name.rsplit(|octet| *octet == b'\\').next().unwrap_or(name)
}

fn proven(hash: &NtHash, response: &[u8; 24], name: Option<Identification>) -> Proven {
    Proven { kind: Kind::Mschapv2, msk: msk(hash, response), name, credential: hash.octets().clone() }
}

/// Our side of it as a peer.
pub(super) struct Client {
    user: Vec<u8>,
    hash: NtHash,
    /// What the server has to show, and what is proven then.
    expected: Option<(String, Proven)>,
    outcome: Option<Result<Proven, Failed>>,
}

impl Client {
    pub(super) fn new(means: &dyn Means, user: &[u8]) -> Result<Self, Failed> {
        let unknown = || failed(format!("no EAP secret of '{}' is configured", shown(user)));
        let hash = means.password(user, true).ok_or_else(unknown)?;
        Ok(Self { user: user.to_vec(), hash, expected: None, outcome: None })
    }

    fn respond(&mut self, rng: &mut ChaCha20Rng, id: u8, body: &[u8]) -> Result<Vec<u8>, Failed> {
        let (16, Some(server)) = (body.first().copied().unwrap_or(0), body.get(1..17)) else {
            return Err(failed("the challenge of EAP-MSCHAPv2 has not 16 octets"));
        };
        if self.expected.is_some() {
            return Err(failed("the server sends a second challenge"));
        }
        let server = server.try_into().map_err(|_| failed("no challenge"))?;
        let peer = random(rng);
        let attempt = Attempt { server: &server, peer: &peer, user: without_domain(&self.user) };
        let response = attempt.response(&self.hash);
        let authenticator = attempt.authenticator(&self.hash, &response);
        self.expected = Some((authenticator, proven(&self.hash, &response, None)));
        Ok(message(RESPONSE, id, &[&[49], &peer, &[0; 8], &response, &[0], &self.user]))
    }

    /// The server knows the password too, or it is not the one that it should be.
    fn check(&mut self, body: &[u8]) -> Result<Vec<u8>, Failed> {
        let (expected, proven) = self
            .expected
            .take()
            .ok_or_else(|| failed("the server is content before we have said anything"))?;
        let shown = body.get(..expected.len()).unwrap_or_default().to_ascii_uppercase();
        if Secret::from(shown) != Secret::from(expected.into_bytes()) {
            return Err(failed("the server does not know the password"));
        }
        self.outcome = Some(Ok(proven));
        Ok(vec![SUCCESS])
    }
}

impl Method for Client {
    fn handle(
        &mut self,
        _: &dyn Means,
        rng: &mut ChaCha20Rng,
        data: &[u8],
    ) -> Result<Option<Vec<u8>>, Failed> {
        let (op, id, body) = read(data)?;
        if self.outcome.is_some() {
            return Err(failed("a message of EAP-MSCHAPv2 comes after its end"));
        }
        match op {
            CHALLENGE => self.respond(rng, id, body).map(Some),
            SUCCESS => self.check(body).map(Some),
            FAILURE if self.expected.take().is_some() => {
                let reason = format!("EAP-MS-CHAPv2 failed with error {}", error(body));
                info!(target: "IKE", "{reason}");
                self.outcome = Some(Err(Failed(reason)));
                Ok(Some(vec![FAILURE]))
            }
            _ => Err(failed("a message of EAP-MSCHAPv2 is not the one that is due")),
        }
    }

    fn outcome(&self) -> Option<&Result<Proven, Failed>> {
        self.outcome.as_ref()
    }
}

/// The number in `E=691 R=0 C=... V=3 M=...`, in words where it is a common one.
fn error(body: &[u8]) -> &'static str {
    let digits = body.strip_prefix(b"E=").unwrap_or_default();
    match digits.get(..3).unwrap_or_default() {
        b"646" => "646 (restricted logon hours)",
        b"647" => "647 (account disabled)",
        b"648" => "648 (password expired)",
        b"649" => "649 (no permission to dial in)",
        b"691" => "691 (authentication failure)",
        b"709" => "709 (error changing the password)",
        _ => "of an unknown kind",
    }
}

/// Our side of it as a server.
pub(super) struct Host {
    /// The name that the response has to have, if it is known.
    user: Option<Vec<u8>>,
    /// Nobody is expected to have that name: the steps are gone through all the same.
    stranger: bool,
    id: u8,
    challenge: [u8; 16],
    attempts: u32,
    /// Our success or failure has gone out and waits to be acknowledged.
    waits: Option<Result<Proven, Failed>>,
    outcome: Option<Result<Proven, Failed>>,
}

impl Host {
    /// The server's side, and its first message.
    pub(super) fn start(rng: &mut ChaCha20Rng, user: Option<&[u8]>, stranger: bool) -> (Self, Vec<u8>) {
        let [id] = random(rng);
        let challenge = random(rng);
        let user = user.map(<[u8]>::to_vec);
        let host = Self { user, stranger, id, challenge, attempts: 0, waits: None, outcome: None };
        let first = message(CHALLENGE, id, &[&[16], &challenge, SERVER_NAME]);
        (host, first)
    }

    /// A user that nobody knows costs the same work, and gets the same answer, as a wrong password.
    fn judge(&mut self, means: &dyn Means, rng: &mut ChaCha20Rng, body: &[u8]) -> Result<Vec<u8>, Failed> {
        let malformed = || failed("the response of EAP-MSCHAPv2 has the wrong form");
        let (&49, Some(value), Some(name)) =
            (body.first().ok_or_else(malformed)?, body.get(1..50), body.get(50..))
        else {
            return Err(malformed());
        };
        if name.len() > MAX_IDENTITY {
            return Err(malformed());
        }
        let peer = value[..16].try_into().map_err(|_| malformed())?;
        let response: [u8; 24] = value[24..48].try_into().map_err(|_| malformed())?;
        let user = without_domain(name);
        let attempt = Attempt { server: &self.challenge, peer: &peer, user };
        let known = means.password(name, false).or_else(|| means.password(user, false));
        let is_known = known.is_some();
        let hash = known.unwrap_or(NtHash::of("")).clone();
        let right = Secret::from(attempt.response(&hash).to_vec()) == Secret::from(response.to_vec());
        let authenticator = attempt.authenticator(&hash, &response);
        let is_expected = self.user.as_ref().is_none_or(|user| without_domain(user) == without_domain(name));
        let outcome = proven(&hash, &response, Some(identification(name)));
        self.attempts += 1;
        if right && is_known && is_expected && !self.stranger {
            self.waits = Some(Ok(outcome));
            return Ok(message(SUCCESS, self.id, &[authenticator.as_bytes(), b" M=Welcome"]));
        }
        let reason = match (is_known, is_expected && !self.stranger) {
            (_, false) => "is not who the connection expects",
            (false, _) => "is not known",
            (true, true) => "has a wrong password",
        };
        info!(target: "IKE", "EAP-MS-CHAPv2 verification failed: user '{}' {reason}", shown(name));
        let reason = failed(format!("user '{}' {reason}", shown(name)));
        self.waits = Some(Err(reason));
        self.challenge = random(rng);
        let digits: String = self.challenge.iter().map(|octet| format!("{octet:02X}")).collect();
        let again = u8::from(self.attempts < ATTEMPTS);
        let text = format!("E=691 R={again} C={digits} V=3 M=Authentication failed");
        let answer = message(FAILURE, self.id, &[text.as_bytes()]);
        // A response to the new challenge has the next identifier.
        self.id = self.id.wrapping_add(1);
        Ok(answer)
    }
}

impl Method for Host {
    fn handle(
        &mut self,
        means: &dyn Means,
        rng: &mut ChaCha20Rng,
        data: &[u8],
    ) -> Result<Option<Vec<u8>>, Failed> {
        match (data, self.waits.take()) {
            // Windows has a whole header here, others one octet.
            ([SUCCESS, ..], Some(Ok(proven))) => {
                self.outcome = Some(Ok(proven));
                Ok(None)
            }
            ([FAILURE, ..], Some(Err(reason))) => Err(reason),
            ([RESPONSE, ..], None | Some(Err(_))) if self.outcome.is_none() && self.attempts < ATTEMPTS => {
                let (_, id, body) = read(data)?;
                // Not all raise the identifier for another attempt.
                if id != self.id && (self.attempts == 0 || id.wrapping_add(1) != self.id) {
                    return Err(failed("the response of EAP-MSCHAPv2 is to another challenge"));
                }
                self.judge(means, rng, body).map(Some)
            }
            _ => Err(failed("a message of EAP-MSCHAPv2 is not the one that is due")),
        }
    }

    fn outcome(&self) -> Option<&Result<Proven, Failed>> {
        self.outcome.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;

    /// One user.
    struct Carol;

    impl Means for Carol {
        fn password(&self, user: &[u8], _: bool) -> Option<NtHash> {
            (user == b"carol").then(|| NtHash::of("Ar3etTnp"))
        }

        fn tls(&self, _: Option<&Identification>) -> Result<crate::eap::TlsSettings, Failed> {
            Err(failed("there are no certificates"))
        }
    }

    fn rng() -> ChaCha20Rng {
        ChaCha20Rng::from_seed([5; 32])
    }

    /// A peer that guesses: its response to the challenge in a message of the server.
    fn guess(question: &[u8], name: &[u8], password: &str) -> Vec<u8> {
        let challenge: [u8; 16] = if question[0] == CHALLENGE {
            question[5..21].try_into().unwrap()
        } else {
            let text = String::from_utf8(question[4..].to_vec()).unwrap();
            let digits = text.split("C=").nth(1).unwrap();
            std::array::from_fn(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
        };
        let attempt = Attempt { server: &challenge, peer: &[7; 16], user: without_domain(name) };
        let response = attempt.response(&NtHash::of(password));
        let id = question[1].wrapping_add(u8::from(question[0] == FAILURE));
        message(RESPONSE, id, &[&[49], &[7; 16], &[0; 8], &response, &[0], name])
    }

    fn says(question: &[u8], what: &str) -> bool {
        String::from_utf8_lossy(question).contains(what)
    }

    #[test]
    fn a_password_may_be_typed_again_but_not_for_ever() {
        let (mut host, first) = Host::start(&mut rng(), None, false);
        let mut next = |question: &[u8], password: &str| {
            host.handle(&Carol, &mut rng(), &guess(question, b"carol", password))
        };
        let again = next(&first, "a").unwrap().unwrap();
        assert!(says(&again, "E=691 R=1"));
        let last = next(&again, "b").unwrap().unwrap();
        assert!(says(&last, "E=691 R=1"));
        let end = next(&last, "c").unwrap().unwrap();
        assert!(says(&end, "E=691 R=0"));
        assert!(next(&end, "Ar3etTnp").is_err(), "a fourth attempt");

        let (mut host, first) = Host::start(&mut rng(), None, false);
        let again = host.handle(&Carol, &mut rng(), &guess(&first, b"carol", "a")).unwrap().unwrap();
        let right = guess(&again, b"HOME\\carol", "Ar3etTnp");
        let content = host.handle(&Carol, &mut rng(), &right).unwrap().unwrap();
        assert!(content[0] == SUCCESS && says(&content, "S=") && host.outcome().is_none());
        assert_eq!(host.handle(&Carol, &mut rng(), &[SUCCESS]), Ok(None));
        let Some(Ok(proven)) = host.outcome() else { panic!("carol is proven") };
        assert_eq!(proven.name, Some(identification(b"HOME\\carol")));
        assert_eq!(proven.msk.len(), 64);
    }

    #[test]
    fn a_success_that_is_not_acknowledged_proves_nobody() {
        let (mut host, first) = Host::start(&mut rng(), None, false);
        let content = host.handle(&Carol, &mut rng(), &guess(&first, b"carol", "Ar3etTnp")).unwrap();
        assert!(content.is_some());
        assert!(host.handle(&Carol, &mut rng(), &[FAILURE]).is_err());
        assert!(host.outcome().is_none());
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_refused() {
        let challenge = message(CHALLENGE, 1, &[&[16], &[3; 16], b"x"]);
        for said in [&b"S=0000000000000000000000000000000000000000 M=Hello"[..], b"S=", b""] {
            let mut client = Client::new(&Carol, b"carol").unwrap();
            client.handle(&Carol, &mut rng(), &challenge).unwrap();
            assert!(client.handle(&Carol, &mut rng(), &message(SUCCESS, 1, &[said])).is_err());
            assert!(client.outcome().is_none());
        }
        let mut client = Client::new(&Carol, b"carol").unwrap();
        assert!(
            client.handle(&Carol, &mut rng(), &message(SUCCESS, 1, &[b"S="])).is_err(),
            "before a challenge"
        );
        client.handle(&Carol, &mut rng(), &challenge).unwrap();
        assert!(client.handle(&Carol, &mut rng(), &challenge).is_err(), "a second challenge");
        assert!(Client::new(&Carol, b"dave").is_err());
    }

    #[test]
    fn every_length_is_checked() {
        let (_, first) = Host::start(&mut rng(), None, false);
        let good = guess(&first, b"carol", "Ar3etTnp");
        for length in 0..good.len() {
            let (mut host, _) = Host::start(&mut rng(), None, false);
            assert!(host.handle(&Carol, &mut rng(), &good[..length]).is_err(), "{length} octets");
            // With a length that fits, and no name or less.
            let mut short = good[..length.max(4)].to_vec();
            short[2..4].copy_from_slice(&(length.max(4) as u16).to_be_bytes());
            let (mut host, _) = Host::start(&mut rng(), None, false);
            let _ = host.handle(&Carol, &mut rng(), &short);
            assert!(!matches!(host.waits, Some(Ok(_))) && host.outcome().is_none(), "{length} octets");
        }
    }
}
