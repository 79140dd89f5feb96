//! Scripts of operators (`updown`): when one runs and what it is told. Running it is the daemon's.
//!
//! A script runs when traffic of a Child SA begins to be protected, and again when that ends. Between the two Child SAs are
//! replaced, doubled and moved to other IKE SAs; all that belong together hold one [`Raised`], and whoever is the last to let
//! go of it ends it. So no script is told of an end twice, or not at all.

use std::net::IpAddr;
use std::sync::Arc;

use mobikex_common::sa::ChildSaId;
use mobikex_common::ts::TrafficSelector;
use tracing::info;

use super::child::ChildSa;
use super::ctx::Ctx;
use super::output::Output;
use super::sa::IkeSa;

/// Pairs of selectors for which a script runs. A peer may narrow one selector to many, an operator seldom means more.
const MAX_PAIRS: usize = 64;
/// Numbers of ICMP and ICMPv6, whose types and codes stand in the place of ports.
const ICMP: [u8; 2] = [1, 58];

/// A variable of the environment.
type Variable = (String, String);

/// A script and what it is told of one Child SA. What it is told at the end is what it was told at the beginning, whatever
/// has moved since, so that it can take back what it has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Script {
    /// The operator's command line.
    pub command: String,
    /// `net{1}`, for the log.
    pub child: String,
    /// What has the same text here is run one after the other.
    pub turn: String,
    variables: Vec<Variable>,
    pairs: Vec<Pair>,
}

/// One pair of selectors, for which the script runs once.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Pair {
    local: TrafficSelector,
    remote: TrafficSelector,
    /// Our side is our outer address.
    host: bool,
}

/// One run of a script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// `up-client`, `down-host-v6`
    pub verb: String,
    /// The environment.
    pub variables: Vec<Variable>,
}

impl Script {
    /// One without an environment, for one pair of selectors.
    #[cfg(test)]
    pub(crate) fn of(turn: &str, command: &str) -> Arc<Self> {
        let any = (TrafficSelector::ANY_V4, TrafficSelector::ANY_V4);
        Arc::new(Self {
            command: command.into(),
            child: command.into(),
            turn: turn.into(),
            variables: Vec::new(),
            pairs: vec![Pair::new(any, IpAddr::from([192, 0, 2, 1]))],
        })
    }

    /// Tells one thing more.
    #[cfg(test)]
    pub(crate) fn tell(&mut self, name: &str, value: &str) {
        self.variables.push((name.into(), value.into()));
    }

    /// What is to be run, in this order, at the beginning (`up`) or at the end.
    pub fn runs(&self, up: bool) -> Vec<Run> {
        let run = |pair: &Pair| {
            let verb = format!(
                "{}-{}{}",
                if up { "up" } else { "down" },
                if pair.host { "host" } else { "client" },
                if pair.local.is_ipv4() { "" } else { "-v6" }
            );
            let mut variables = vec![("PLUTO_VERB".to_string(), verb.clone())];
            variables.extend(self.variables.iter().cloned());
            variables.extend(pair.variables());
            Run { verb, variables }
        };
        self.pairs.iter().map(run).collect()
    }

    fn is_for(&self, child: &ChildSa) -> bool {
        self.pairs.iter().map(|pair| (pair.local, pair.remote)).eq(pairs(&child.ts_local, &child.ts_remote))
    }
}

/// The pairs that can carry a packet, as many as a script runs for.
fn pairs(
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
) -> impl Iterator<Item = (TrafficSelector, TrafficSelector)> {
    let fit = |l: &TrafficSelector, r: &TrafficSelector| {
        let one_protocol = l.protocol == r.protocol || l.protocol == 0 || r.protocol == 0;
        l.is_ipv4() == r.is_ipv4() && one_protocol
    };
    let all = local.iter().flat_map(move |l| remote.iter().filter(move |r| fit(l, r)).map(|r| (*l, *r)));
    all.take(MAX_PAIRS)
}

impl Pair {
    fn new((local, remote): (TrafficSelector, TrafficSelector), me: IpAddr) -> Self {
        Self { local, remote, host: local.start == me && local.end == me }
    }

    fn variables(&self) -> Vec<Variable> {
        let mut out = Vec::new();
        for (side, ts, port) in [
            ("MY", &self.local, self.port(&self.local, true)),
            ("PEER", &self.remote, self.port(&self.remote, false)),
        ] {
            let (addr, len) = subnet(ts);
            out.push((format!("PLUTO_{side}_CLIENT"), format!("{addr}/{len}")));
            out.push((format!("PLUTO_{side}_PORT"), port));
            out.push((format!("PLUTO_{side}_PROTOCOL"), ts.protocol.to_string()));
        }
        out
    }

    /// A port, `FIRST:LAST`, or 0 for all; of ICMP the type on our side and the code on the peer's.
    fn port(&self, ts: &TrafficSelector, ours: bool) -> String {
        if ICMP.contains(&self.local.protocol.max(self.remote.protocol)) {
            let [kind, code] = self.local.start_port.max(self.remote.start_port).to_be_bytes();
            return if ours { kind } else { code }.to_string();
        }
        match (ts.start_port, ts.end_port) {
            (first, last) if first == last => first.to_string(),
            (0, u16::MAX) => "0".to_string(),
            (first, last) => format!("{first}:{last}"),
        }
    }
}

/// The smallest prefix that holds all addresses of a selector.
fn subnet(ts: &TrafficSelector) -> (IpAddr, u8) {
    match (ts.start, ts.end) {
        (IpAddr::V4(start), IpAddr::V4(end)) => {
            let len = (start.to_bits() ^ end.to_bits()).leading_zeros();
            let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
            (IpAddr::V4((start.to_bits() & mask).into()), len as u8)
        }
        (IpAddr::V6(start), IpAddr::V6(end)) => {
            let len = (start.to_bits() ^ end.to_bits()).leading_zeros();
            let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
            (IpAddr::V6((start.to_bits() & mask).into()), len as u8)
        }
        // Both ends of a selector have one family.
        (start, _) => (start, 0),
    }
}

/// `PLUTO_MY_SOURCEIP4_1` and so on: addresses with a number within their family.
fn numbered(stem: &str, addresses: &[IpAddr]) -> Vec<Variable> {
    let mut counts = [0; 2];
    let mut number = |addr: &IpAddr| {
        let (family, count) = if addr.is_ipv4() { (4, &mut counts[0]) } else { (6, &mut counts[1]) };
        *count += 1;
        (format!("{stem}{family}_{count}"), addr.to_string())
    };
    addresses.iter().map(&mut number).collect()
}

/// A script that has been told of the beginning, and not yet of the end.
#[derive(Debug)]
pub(super) struct Raised(Arc<Script>);

/// Lets go of a script; the last one has it told of the end.
pub(super) fn lower(ctx: &mut Ctx<'_>, raised: Option<Arc<Raised>>) {
    if let Some(Raised(script)) = raised.and_then(Arc::into_inner) {
        ctx.out.push_back(Output::RunScript { up: false, script });
    }
}

impl IkeSa {
    /// What has been told already of the traffic of a new Child SA: it is one more, for a worker, or crosses another one.
    pub(super) fn raised_with(&self, new: &ChildSa) -> Option<Arc<Raised>> {
        let raised =
            self.children.iter().filter(|c| c.policy == new.policy).filter_map(|c| c.raised.as_ref());
        raised.into_iter().find(|raised| new.resource.worker.is_some() || raised.0.is_for(new)).cloned()
    }

    /// Has the script of a Child SA told that it is there.
    pub(super) fn raise(&self, ctx: &mut Ctx<'_>, child: &ChildSa) -> Option<Arc<Raised>> {
        let command = child.config.updown.clone()?;
        let pairs = pairs(&child.ts_local, &child.ts_remote);
        let pairs: Vec<Pair> = pairs.map(|pair| Pair::new(pair, self.local.ip())).collect();
        let all = child.ts_local.len().saturating_mul(child.ts_remote.len());
        if pairs.len() == MAX_PAIRS && all > MAX_PAIRS {
            info!(target: "CHD", "{} has {all} pairs of selectors: updown runs for the first {MAX_PAIRS}", child.name());
        }
        let peer = self.peer().map(|peer| peer.id().to_string()).unwrap_or_default();
        let script = Arc::new(Script {
            command,
            child: child.name(),
            // A peer that comes back is to find what it left taken back first.
            turn: format!("{}/{} {peer}", self.conn.name, child.config.name),
            variables: self.variables(ctx, child),
            pairs,
        });
        ctx.out.push_back(Output::RunScript { up: true, script: Arc::clone(&script) });
        Some(Arc::new(Raised(script)))
    }

    /// An action on addresses may have given a Child SA other selectors: the script is told of the end of those before, and of
    /// the beginning of these, once for all Child SAs that have replaced each other.
    pub(super) fn raise_again(&mut self, ctx: &mut Ctx<'_>, id: ChildSaId) {
        let Some(index) = self.children.iter().position(|c| c.id == id) else { return };
        let child = &self.children[index];
        let Some(old) = child.raised.clone() else { return };
        if old.0.is_for(child) {
            return;
        }
        let has_it = |c: &&mut ChildSa| c.raised.as_ref().is_some_and(|raised| Arc::ptr_eq(raised, &old));
        let holders: Vec<ChildSaId> = self
            .children
            .iter_mut()
            .filter(has_it)
            .map(|c| {
                c.raised = None;
                c.id
            })
            .collect();
        lower(ctx, Some(old));
        let new = self.raise(ctx, &self.children[index]);
        for child in self.children.iter_mut().filter(|c| holders.contains(&c.id)) {
            child.raised.clone_from(&new);
        }
    }

    /// What does not differ from one pair of selectors to the next.
    fn variables(&self, ctx: &Ctx<'_>, child: &ChildSa) -> Vec<Variable> {
        let (me, peer) = (self.local.ip(), self.remote.ip());
        let interface = ctx.network.find(me).map_or("unknown", |found| found.interface.as_str());
        let eap = self.peer().and_then(|proven| proven.eap_id());
        let known = [
            ("PLUTO_VERSION", Some("1.1".to_string())),
            ("PLUTO_CONNECTION", Some(child.config.name.clone())),
            ("PLUTO_INTERFACE", Some(interface.to_string())),
            ("PLUTO_REQID", Some(child.policy.0.to_string())),
            ("PLUTO_PROTO", Some("esp".to_string())),
            ("PLUTO_UNIQUEID", Some(self.id.to_string())),
            ("PLUTO_ME", Some(me.to_string())),
            ("PLUTO_MY_ID", self.local_id.as_ref().map(ToString::to_string)),
            ("PLUTO_PEER", Some(peer.to_string())),
            ("PLUTO_PEER_ID", self.peer().map(|proven| proven.ike_id().to_string())),
            ("PLUTO_XAUTH_ID", eap.map(ToString::to_string)),
            ("PLUTO_UDP_ENC", self.encap.then(|| self.remote.port().to_string())),
            ("PLUTO_HOST_ACCESS", child.config.hostaccess.then(|| "1".to_string())),
            ("MOBIKEX_CONNECTION", Some(self.conn.name.clone())),
        ];
        let (given, servers) =
            self.given().map(|g| (g.addresses.as_slice(), g.dns.as_slice())).unwrap_or_default();
        // No variable can hold a zero, and nobody expects the end of a line in one.
        let clean = |text: String| text.replace(char::is_control, "?");
        let known = known.into_iter().filter_map(|(name, value)| Some((name.to_string(), clean(value?))));
        let mut out: Vec<Variable> = known.collect();
        for (side, addresses) in [("MY", given), ("PEER", self.assigned())] {
            let stem = format!("PLUTO_{side}_SOURCEIP");
            out.extend(addresses.first().map(|first| (stem.clone(), first.to_string())));
            out.extend(numbered(&stem, addresses));
        }
        out.extend(numbered("PLUTO_DNS", servers));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(local: &[&str], remote: &[&str]) -> Script {
        let list =
            |texts: &[&str]| -> Vec<TrafficSelector> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        Script {
            command: "true".into(),
            child: "net{1}".into(),
            turn: "home/net peer".into(),
            variables: vec![("PLUTO_VERSION".into(), "1.1".into())],
            pairs: pairs(&list(local), &list(remote))
                .map(|pair| Pair::new(pair, "192.0.2.1".parse().unwrap()))
                .collect(),
        }
    }

    fn of<'a>(run: &'a Run, name: &str) -> &'a str {
        let found = run.variables.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value.as_str())
    }

    #[test]
    fn a_script_runs_once_for_each_pair_that_can_carry_a_packet() {
        let script = script(&["10.1.0.0/16", "192.0.2.1", "fd01::/64"], &["10.2.0.0/16", "fd02::/64"]);
        let verbs = |up| script.runs(up).into_iter().map(|run| run.verb).collect::<Vec<_>>();
        assert_eq!(verbs(true), ["up-client", "up-host", "up-client-v6"]);
        assert_eq!(verbs(false), ["down-client", "down-host", "down-client-v6"]);
        let runs = script.runs(true);
        let first: Vec<_> = runs[0].variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            first,
            [
                "PLUTO_VERB=up-client",
                "PLUTO_VERSION=1.1",
                "PLUTO_MY_CLIENT=10.1.0.0/16",
                "PLUTO_MY_PORT=0",
                "PLUTO_MY_PROTOCOL=0",
                "PLUTO_PEER_CLIENT=10.2.0.0/16",
                "PLUTO_PEER_PORT=0",
                "PLUTO_PEER_PROTOCOL=0",
            ]
        );
        assert_eq!(
            (of(&runs[2], "PLUTO_MY_CLIENT"), of(&runs[2], "PLUTO_PEER_CLIENT")),
            ("fd01::/64", "fd02::/64")
        );
        assert_eq!(of(&runs[1], "PLUTO_MY_CLIENT"), "192.0.2.1/32");
    }

    #[test]
    fn ports_protocols_and_ranges_are_shown_as_far_as_the_variables_can() {
        let tcp =
            &script(&["10.1.0.0/16[tcp/80]", "10.1.0.0/16[17]"], &["10.2.0.0/16[6/1024-2047]"]).runs(true);
        assert_eq!(tcp.len(), 1, "two protocols have nothing in common");
        assert_eq!((of(&tcp[0], "PLUTO_MY_PORT"), of(&tcp[0], "PLUTO_PEER_PORT")), ("80", "1024:2047"));
        assert_eq!(of(&tcp[0], "PLUTO_PEER_PROTOCOL"), "6");
        let icmp =
            TrafficSelector { protocol: 1, start_port: 0x0803, end_port: 0x0803, ..TrafficSelector::ANY_V4 };
        let ping = Pair { local: icmp, remote: TrafficSelector::ANY_V4, host: false };
        assert_eq!((ping.port(&icmp, true), ping.port(&ping.remote, false)), ("8".into(), "3".into()));
        let opaque =
            TrafficSelector { start_port: u16::MAX, end_port: 0, protocol: 6, ..TrafficSelector::ANY_V4 };
        assert_eq!(Pair { local: opaque, remote: opaque, host: false }.port(&opaque, true), "65535:0");
        for (range, expected) in [
            ("10.1.0.3-10.1.0.9", "10.1.0.0/28"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("::/0", "::/0"),
            ("fd00::1-fd00::2", "fd00::/126"),
        ] {
            let (addr, len) = subnet(&range.parse().unwrap());
            assert_eq!(format!("{addr}/{len}"), expected, "{range}");
        }
    }

    #[test]
    fn a_peer_cannot_make_it_run_without_end() {
        let many: Vec<String> = (0..200).map(|i| format!("10.2.{i}.0/24")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(script(&many, &many).runs(true).len(), MAX_PAIRS);
    }

    #[test]
    fn addresses_are_numbered_within_their_family() {
        let addresses = ["10.3.0.1", "fd03::1", "10.3.0.2"].map(|a| a.parse().unwrap());
        let shown: Vec<_> =
            numbered("PLUTO_DNS", &addresses).iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(shown, ["PLUTO_DNS4_1=10.3.0.1", "PLUTO_DNS6_1=fd03::1", "PLUTO_DNS4_2=10.3.0.2"]);
    }
}
