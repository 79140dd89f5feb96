//! One endpoint, and a peer that the test plays by hand: every payload is in view, and anything can be said from
//! anywhere.
//!
//! The peer is written from the standards alone (RFC 7296 2.13 to 2.15, 3.14) and shares no code with the engine but the
//! algorithms and the payload formats.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mobikex::config::{Config, Connection};
use mobikex::ike::{ChildEvent, Command, Endpoint, Event, IkeSaView, LocalAddress, Output};
use mobikex_common::alg::{Cipher, KeyBits, KeyExchange, Prf, TransformType};
use mobikex_common::crypto::ke::PrivateKey;
use mobikex_common::crypto::{PacketCipher, Secret, prf, sha1};
use mobikex_common::sa::{ChildSaId, ChildSaParams};
use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::{
    AuthMethod, AuthPayload, ExchangeType, Flags, Header, Identification, Notify, NotifyType, Payload,
    PayloadType, Proposal, ProtocolId, Transform, emit_chain, parse_chain,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use crate::world::{config, ip};

const CIPHER: Cipher = Cipher::AesGcm16(KeyBits::B256);
const PRF: Prf = Prf::HmacSha256;
const METHOD: KeyExchange = KeyExchange::X25519;
const SECRET: &[u8] = b"correct horse battery staple";

/// The SPI on which the peer receives ESP.
pub const PEER_SPI: u32 = 0xc0de_0001;

/// A message of the endpoint, opened.
pub struct Said {
    pub at: Instant,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub header: Header,
    pub payloads: Vec<Payload>,
    datagram: Vec<u8>,
}

impl Said {
    pub fn kinds(&self) -> Vec<NotifyType> {
        let kind = |p: &Payload| if let Payload::Notify(n) = p { Some(n.kind) } else { None };
        self.payloads.iter().filter_map(kind).collect()
    }

    pub fn says(&self, kind: NotifyType) -> bool {
        self.kinds().contains(&kind)
    }

    /// The data of a notify that must be there.
    pub fn data(&self, kind: NotifyType) -> &[u8] {
        let found = self.payloads.iter().find_map(|p| match p {
            Payload::Notify(n) if n.kind == kind => Some(n.data.as_slice()),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("no {kind} in {:?}", self.kinds()))
    }

    pub fn is_request(&self) -> bool {
        !self.header.flags.response
    }
}

pub fn say(kind: NotifyType, data: impl Into<Vec<u8>>) -> Payload {
    Payload::Notify(Notify::new(kind, data.into()))
}

pub fn at(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(text), port)
}

/// Source and destination.
pub type Pair = (SocketAddr, SocketAddr);

/// What the peer thinks of NATs when it answers IKE_SA_INIT.
#[derive(Clone, Copy)]
pub enum Nat {
    /// It knows nothing of NAT traversal.
    Unsupported,
    /// There is none.
    Absent,
    /// One makes the endpoint appear here.
    SeenAs(SocketAddr),
}

/// Keys and counters of the peer's half of the IKE SA.
struct Session {
    spi_i: IkeSpi,
    spi_r: IkeSpi,
    /// The peer is the original initiator.
    initiator: bool,
    ciphers: [PacketCipher; 2],
    sk_p: [Secret; 2],
    nonces: [Vec<u8>; 2],
    messages: [Vec<u8>; 2],
    next: u32,
    ivs: u64,
}

/// See the module.
pub struct Puppet {
    pub now: Instant,
    pub endpoint: Endpoint,
    pub events: Vec<Event>,
    pub children: BTreeMap<ChildSaId, ChildSaParams>,
    /// How often the packet path was given other addresses.
    pub changes: usize,
    /// NAT keepalives of the endpoint.
    pub keepalives: usize,
    heard: Vec<Said>,
    session: Option<Session>,
    rng: ChaCha20Rng,
}

/// A configuration of side `me` that the peer's only suite fits, for RFC 4555 without more.
pub fn plain(me: usize, change: impl FnOnce(&mut Connection)) -> Config {
    let mut config = config(me);
    let c = &mut config.connections[0];
    c.mobike_x = mobikex::config::MobikeX::No;
    c.encap = false;
    c.proposals = vec!["aes256gcm16-prfsha256-x25519".parse().unwrap()];
    c.children[0].esp_proposals = vec!["aes256gcm16".parse().unwrap()];
    change(c);
    config
}

fn transform(kind: TransformType, id: u16, key_bits: Option<u16>) -> Transform {
    Transform { kind, id, key_bits, other_attributes: Vec::new() }
}

fn ike_proposal() -> Payload {
    let (id, bits) = CIPHER.transform();
    let transforms = vec![
        transform(TransformType::ENCR, id, bits),
        transform(TransformType::PRF, PRF.transform(), None),
        transform(TransformType::KE, METHOD.transform(), None),
    ];
    Payload::Sa(vec![Proposal { number: 1, protocol: ProtocolId::IKE, spi: Vec::new(), transforms }])
}

/// An offer for a Child SA, or the answer to one.
pub fn esp_proposal(spi: u32) -> Payload {
    let (id, bits) = CIPHER.transform();
    let transforms = vec![transform(TransformType::ENCR, id, bits), transform(TransformType::ESN, 0, None)];
    let spi = spi.to_be_bytes().to_vec();
    Payload::Sa(vec![Proposal { number: 1, protocol: ProtocolId::ESP, spi, transforms }])
}

fn identity(me: usize) -> Identification {
    ["a.example", "b.example"][me].parse().unwrap()
}

/// Selectors of a Child SA that the peer starts.
pub fn selectors(theirs: &str, ours: &str) -> [Payload; 2] {
    [Payload::TsI(vec![theirs.parse().unwrap()]), Payload::TsR(vec![ours.parse().unwrap()])]
}

/// NAT_DETECTION data (RFC 7296 2.23).
fn nat_hash(spi_i: IkeSpi, spi_r: IkeSpi, addr: SocketAddr) -> Vec<u8> {
    let port = addr.port().to_be_bytes();
    let (i, r) = (spi_i.to_be_bytes(), spi_r.to_be_bytes());
    match addr.ip() {
        std::net::IpAddr::V4(a) => sha1(&[&i, &r, &a.octets(), &port]).to_vec(),
        std::net::IpAddr::V6(a) => sha1(&[&i, &r, &a.octets(), &port]).to_vec(),
    }
}

fn detection(spis: (IkeSpi, IkeSpi), (from, to): Pair) -> [Payload; 2] {
    let hash = |addr| nat_hash(spis.0, spis.1, addr);
    [
        say(NotifyType::NAT_DETECTION_SOURCE_IP, hash(from)),
        say(NotifyType::NAT_DETECTION_DESTINATION_IP, hash(to)),
    ]
}

fn header(spis: (IkeSpi, IkeSpi), exchange: ExchangeType, flags: (bool, bool), id: u32) -> Header {
    Header {
        initiator_spi: spis.0,
        responder_spi: spis.1,
        next_payload: PayloadType::SK,
        major: 2,
        minor: 0,
        exchange,
        flags: Flags { initiator: flags.0, higher_version: false, response: flags.1 },
        message_id: id,
        length: 0,
    }
}

fn unprotected(header: Header, payloads: &[Payload]) -> Vec<u8> {
    let (first, body) = emit_chain(payloads);
    let length = (Header::LEN + body.len()) as u32;
    [&Header { next_payload: first, length, ..header }.emit()[..], &body].concat()
}

impl Session {
    /// All keys from what both sides have said in IKE_SA_INIT (RFC 7296 2.14).
    fn new(
        initiator: bool,
        (spi_i, spi_r): (IkeSpi, IkeSpi),
        nonces: [Vec<u8>; 2],
        shared: &[u8],
        messages: [Vec<u8>; 2],
    ) -> Self {
        let [ni, nr] = &nonces;
        let seed = prf::prf(PRF, &[&ni[..], nr].concat(), &[shared]);
        let (key, salted) = (PRF.output_len(), CIPHER.key_material_len());
        let spis = (spi_i.to_be_bytes(), spi_r.to_be_bytes());
        let stream = prf::prf_plus(PRF, &seed, &[ni, nr, &spis.0, &spis.1], 3 * key + 2 * salted);
        let cipher =
            |n: usize| PacketCipher::new(CIPHER, None, &stream[key + n * salted..][..salted], &[]).unwrap();
        let sk_p = |n: usize| Secret::from(stream[key + 2 * salted + n * key..][..key].to_vec());
        Self {
            spi_i,
            spi_r,
            initiator,
            ciphers: [cipher(0), cipher(1)],
            sk_p: [sk_p(0), sk_p(1)],
            nonces,
            messages,
            next: u32::from(initiator),
            ivs: 0,
        }
    }

    /// AUTH of one side (RFC 7296 2.15), the original initiator being side 0.
    fn auth(&self, side: usize, id: &Identification) -> Vec<u8> {
        let maced = prf::prf(PRF, &self.sk_p[side], &[&[id.kind.0, 0, 0, 0], &id.data]);
        let key = prf::prf(PRF, SECRET, &[b"Key Pad for IKEv2"]);
        prf::prf(PRF, &key, &[&self.messages[side], &self.nonces[1 - side], &maced]).to_vec()
    }

    fn seal(&mut self, exchange: ExchangeType, response: bool, id: u32, payloads: &[Payload]) -> Vec<u8> {
        let cipher = &self.ciphers[usize::from(!self.initiator)];
        let (first, mut text) = emit_chain(payloads);
        text.push(0);
        self.ivs += 1;
        let iv = self.ivs.to_be_bytes();
        let body = 4 + iv.len() + text.len() + cipher.icv_len();
        let flags = (self.initiator, response);
        let head = header((self.spi_i, self.spi_r), exchange, flags, id);
        let mut message = Header { length: (Header::LEN + body) as u32, ..head }.emit().to_vec();
        message.extend([first.0, 0]);
        message.extend((body as u16).to_be_bytes());
        let mut icv = vec![0; cipher.icv_len()];
        cipher.seal(&iv, &message, &[], &mut text, &mut icv).unwrap();
        [&message[..], &iv, &text, &icv].concat()
    }

    /// A message of the endpoint.
    fn open(&self, datagram: &[u8]) -> Vec<Payload> {
        let cipher = &self.ciphers[usize::from(self.initiator)];
        let (head, rest) = datagram.split_at(Header::LEN + 4);
        let (iv, rest) = rest.split_at(cipher.iv_len());
        let (text, icv) = rest.split_at(rest.len() - cipher.icv_len());
        let mut text = text.to_vec();
        cipher.open(iv, head, &[], &mut text, icv).expect("the endpoint protects what it sends");
        let padding = usize::from(*text.last().unwrap()) + 1;
        parse_chain(PayloadType(head[Header::LEN]), &text[..text.len() - padding]).unwrap()
    }
}

impl Puppet {
    /// An endpoint with these addresses, and a peer that has not spoken yet.
    pub fn new(config: Config, addresses: &[&str]) -> Self {
        let now = Instant::now();
        let mut puppet = Self {
            now,
            endpoint: Endpoint::new(now, config, [7; 32]),
            events: Vec::new(),
            children: BTreeMap::new(),
            changes: 0,
            keepalives: 0,
            heard: Vec::new(),
            session: None,
            rng: ChaCha20Rng::seed_from_u64(99),
        };
        puppet.network(addresses);
        puppet
    }

    /// The endpoint has these addresses from now on, on interfaces `wan2`, `wan3` and so on.
    pub fn network(&mut self, addresses: &[&str]) {
        let list = addresses.iter().zip(2..).map(|(addr, device)| LocalAddress {
            addr: ip(addr),
            device,
            interface: format!("wan{device}"),
            reach: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        });
        self.endpoint.set_network(self.now, list.collect());
        self.collect();
    }

    pub fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.endpoint.next_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(next);
            self.endpoint.handle_timeout(self.now);
            self.collect();
        }
        self.now = end;
    }

    pub fn command(&mut self, command: Command) {
        self.endpoint.handle_command(self.now, command).unwrap();
        self.collect();
    }

    /// An ICMP error about packets from one address to a port of another.
    pub fn unreachable(&mut self, local: &str, remote: &str, port: u16) {
        self.endpoint.handle_unreachable(self.now, ip(local), ip(remote), Some(port));
        self.collect();
    }

    pub fn child_event(&mut self, event: ChildEvent) {
        self.endpoint.handle_child_event(self.now, event);
        self.collect();
    }

    pub fn collect(&mut self) {
        while let Some(output) = self.endpoint.poll_output() {
            match output {
                Output::Transmit { data, .. } if data.len() == 1 => self.keepalives += 1,
                Output::Transmit { local, remote, nat_t, data } => {
                    assert_eq!(nat_t, local.port() == 4500, "the marker goes with the port");
                    self.hear(local, remote, data);
                }
                Output::Event(event) => self.events.push(event),
                Output::InstallChild { params, .. } => {
                    self.children.insert(params.id, *params);
                }
                Output::RemoveChild(id) => {
                    self.children.remove(&id);
                }
                Output::SetAddresses { children, set } => {
                    self.changes += 1;
                    for id in children {
                        self.children.get_mut(&id).unwrap().addresses = set.clone();
                    }
                }
                _ => {}
            }
        }
    }

    fn hear(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        let header = Header::parse(&datagram).unwrap();
        let payloads = match &self.session {
            Some(session) if header.next_payload == PayloadType::SK => session.open(&datagram),
            _ => parse_chain(header.next_payload, &datagram[Header::LEN..]).unwrap(),
        };
        self.heard.push(Said { at: self.now, from, to, header, payloads, datagram });
    }

    /// Everything that the endpoint has sent since the last time.
    pub fn said(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.heard)
    }

    /// The only message that the endpoint has sent since the last time.
    pub fn one(&mut self) -> Said {
        let mut said = self.said();
        let shown: Vec<_> = said.iter().map(|s| (s.header.message_id, s.from, s.to, s.kinds())).collect();
        assert_eq!(said.len(), 1, "{shown:?}\n{}", self.story());
        said.remove(0)
    }

    /// A datagram reaches the endpoint.
    pub fn deliver(&mut self, (from, to): Pair, data: &[u8]) {
        self.endpoint.handle_datagram(self.now, to, from, to.port() == 4500, data);
        self.collect();
    }

    /// The peer's next request, not sent yet.
    pub fn compose(&mut self, exchange: ExchangeType, payloads: &[Payload]) -> Vec<u8> {
        let session = self.session.as_mut().unwrap();
        session.next += 1;
        session.seal(exchange, false, session.next - 1, payloads)
    }

    /// A request of the peer, and the answer. What else the endpoint had to say stays unread.
    pub fn request(&mut self, exchange: ExchangeType, over: Pair, payloads: &[Payload]) -> Said {
        assert!(self.heard.is_empty(), "something was left unread");
        let request = self.compose(exchange, payloads);
        self.deliver(over, &request);
        let index = self.heard.iter().position(|s| !s.is_request()).expect("there is an answer");
        self.heard.remove(index)
    }

    /// An INFORMATIONAL request of the peer, and the answer.
    pub fn ask(&mut self, over: Pair, payloads: &[Payload]) -> Said {
        self.request(ExchangeType::INFORMATIONAL, over, payloads)
    }

    /// The peer answers a request of the endpoint, from where that went.
    pub fn answer(&mut self, request: &Said, payloads: &[Payload]) {
        let Header { exchange, message_id, .. } = request.header;
        let sealed = self.session.as_mut().unwrap().seal(exchange, true, message_id, payloads);
        self.deliver((request.to, request.from), &sealed);
    }

    /// A message that is not protected, with these SPIs.
    pub fn shout(&mut self, over: Pair, spis: (IkeSpi, IkeSpi), response: bool, payload: Payload) {
        let spoken = header(spis, ExchangeType::INFORMATIONAL, (!response, response), 0);
        self.deliver(over, &unprotected(spoken, &[payload]));
    }

    /// NAT_DETECTION of a message over these addresses.
    pub fn detection(&self, (from, to): Pair) -> [Payload; 2] {
        let session = self.session.as_ref().unwrap();
        detection((session.spi_i, session.spi_r), (from, to))
    }

    // ---- set-up --------------------------------------------------------------------------------------------------------

    /// The peer, as side 0, starts an IKE SA: IKE_SA_INIT over one pair of addresses, IKE_AUTH over another. In
    /// NAT_DETECTION it says `detected`. Returns the answer to IKE_AUTH.
    pub fn connect(&mut self, first: Pair, then: Pair, detected: Option<Pair>, more: &[Payload]) -> Said {
        let spi_i = IkeSpi::random(&mut self.rng);
        let ke = PrivateKey::generate(METHOD, &mut self.rng);
        let ni = self.octets(32);
        let mut payloads = vec![
            ike_proposal(),
            Payload::Ke { method: METHOD.transform(), data: ke.public().to_vec() },
            Payload::Nonce(ni.clone()),
        ];
        payloads.extend(detected.map(|d| detection((spi_i, IkeSpi::ZERO), d)).into_iter().flatten());
        let spoken = header((spi_i, IkeSpi::ZERO), ExchangeType::IKE_SA_INIT, (true, false), 0);
        let request = unprotected(spoken, &payloads);
        self.deliver(first, &request);
        let answer = self.one();
        let (public, nr) = key_and_nonce(&answer.payloads);
        let shared = ke.agree(&public).unwrap();
        let spis = (spi_i, answer.header.responder_spi);
        let session = Session::new(true, spis, [ni, nr], &shared, [request, answer.datagram]);
        let id = identity(0);
        let auth = session.auth(0, &id);
        let mut payloads = vec![
            Payload::IdI(id),
            Payload::Auth(AuthPayload { method: AuthMethod::SHARED_KEY_MIC, data: auth }),
            esp_proposal(PEER_SPI),
        ];
        payloads.extend(selectors("10.1.0.0/16", "10.2.0.0/16"));
        payloads.extend_from_slice(more);
        self.session = Some(session);
        self.request(ExchangeType::IKE_AUTH, then, &payloads)
    }

    /// The peer, as side 1, answers the endpoint's IKE_SA_INIT; returns that and the IKE_AUTH request.
    pub fn meet(&mut self, nat: Nat) -> (Said, Said) {
        let init = self.one();
        let (public, ni) = key_and_nonce(&init.payloads);
        let ke = PrivateKey::generate(METHOD, &mut self.rng);
        let (spi_i, spi_r) = (init.header.initiator_spi, IkeSpi::random(&mut self.rng));
        let nr = self.octets(32);
        let mut payloads = vec![
            ike_proposal(),
            Payload::Ke { method: METHOD.transform(), data: ke.public().to_vec() },
            Payload::Nonce(nr.clone()),
        ];
        let seen = match nat {
            Nat::Unsupported => None,
            Nat::Absent => Some((init.to, init.from)),
            Nat::SeenAs(addr) => Some((init.to, addr)),
        };
        payloads.extend(seen.map(|seen| detection((spi_i, spi_r), seen)).into_iter().flatten());
        let spoken = header((spi_i, spi_r), ExchangeType::IKE_SA_INIT, (false, true), 0);
        let response = unprotected(spoken, &payloads);
        let shared = ke.agree(&public).unwrap();
        let messages = [init.datagram.clone(), response.clone()];
        self.session = Some(Session::new(false, (spi_i, spi_r), [ni, nr], &shared, messages));
        self.deliver((init.to, init.from), &response);
        let auth = self.one();
        (init, auth)
    }

    /// The peer's answer to IKE_AUTH.
    pub fn accept(&mut self, auth: &Said, more: &[Payload]) {
        let id = identity(1);
        let data = self.session.as_ref().unwrap().auth(1, &id);
        let mut payloads = vec![
            Payload::IdR(id),
            Payload::Auth(AuthPayload { method: AuthMethod::SHARED_KEY_MIC, data }),
            esp_proposal(PEER_SPI),
        ];
        payloads.extend(selectors("10.1.0.0/16", "10.2.0.0/16"));
        payloads.extend_from_slice(more);
        self.answer(auth, &payloads);
    }

    /// Random octets of the peer.
    pub fn octets(&mut self, len: usize) -> Vec<u8> {
        let mut octets = vec![0; len];
        self.rng.fill_bytes(&mut octets);
        octets
    }

    // ---- what the endpoint has -----------------------------------------------------------------------------------------

    pub fn view(&self) -> IkeSaView {
        let views = self.endpoint.ike_sas(self.now);
        let found = views.into_iter().find(|v| v.state == "ESTABLISHED");
        found.unwrap_or_else(|| panic!("there is no IKE SA:\n{}", self.story()))
    }

    pub fn is_up(&self) -> bool {
        self.endpoint.ike_sas(self.now).iter().any(|v| v.state == "ESTABLISHED")
    }

    /// Each Child SA's pairs that carry traffic, as `local-remote`.
    pub fn carrying(&self) -> Vec<String> {
        let paths = self.children.values().flat_map(|c| &c.addresses.paths).filter(|p| p.weight > 0);
        paths.map(|p| format!("{}-{}", p.path.local, p.path.remote)).collect()
    }

    pub fn story(&self) -> String {
        self.events.iter().map(|e| format!("  {e}\n")).collect()
    }
}

fn key_and_nonce(payloads: &[Payload]) -> (Vec<u8>, Vec<u8>) {
    let key = payloads.iter().find_map(|p| if let Payload::Ke { data, .. } = p { Some(data) } else { None });
    let nonce = payloads.iter().find_map(|p| if let Payload::Nonce(nonce) = p { Some(nonce) } else { None });
    (key.expect("a KE payload").clone(), nonce.expect("a nonce").clone())
}
