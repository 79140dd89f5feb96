//! Whole files: shapes that operators know, and every kind of mistake with its place.

use std::time::Duration;

use mobikex_common::sa::{CopyDscp, Mode};
use proptest::prelude::*;

use super::*;
use crate::eap::{Kind, NtHash};

const OPERATOR: &str = r#"
# the example of the manual
connections {
  home {
    local_addrs  = %any
    remote_addrs = 198.51.100.7, 2001:db8::7
    proposals    = aes256gcm16-prfsha384-x25519
    mobike       = yes
    mobike_x     = yes
    return_routability = required
    paths {
      scheduler  = flow
      interfaces = wan0, lte0
      allowed    = 192.0.2.0/24
      lte0 { preference = 50  rate = 50mbit }
    }
    local  { auth = psk  id = branch.example.org }
    remote { auth = psk  id = hq.example.org }
    children {
      net { local_ts = 10.1.0.0/16  remote_ts = 10.2.0.0/16  mode = tunnel  esp_proposals = aes256gcm16-esn
            replay_window = 8192  start_action = start  dpd_action = restart  encap = yes }
    }
  }
}
secrets { ike-hq { id = hq.example.org  secret = 0sYWJjZA== } }
"#;

const NET2NET: &str = r#"
connections {

   gw-gw {
      local_addrs  = 192.168.0.1
      remote_addrs = 192.168.0.2

      local {
         auth = psk
         id = moon.strongswan.org
      }
      remote {
         auth = psk
         id = sun.strongswan.org
      }
      children {
         net-net {
            local_ts  = 10.1.0.0/16
            remote_ts = 10.2.0.0/16

            start_action = none
            rekey_time = 5400
            rekey_bytes = 500000000
            rekey_packets = 1000000
            esp_proposals = aes128gcm128-x25519
         }
      }
      version = 2
      mobike = no
      reauth_time = 0
      proposals = aes128-sha256-x25519
   }
}

secrets {
   ike-1 {
      id-moon = moon.strongswan.org
      id-sun  = sun.strongswan.org
      secret = 0sv+NkxY9LLZvwj4qCC2o/gGrWDF2d21jL
   }
   ike-2 { secret = "a \"quoted\" key # with all" }
   ike-3 { secret = un{quoted= }
}
"#;

const TRANSPORT: &str = "
connections {
  host-host {
    local_addrs = 192.168.0.1
    remote_addrs = 192.168.0.2
    local { auth = psk }
    remote-1 { auth = psk }
    children { host-host { mode = transport  start_action = trap  copy_dscp = no  close_action = restart } }
  }
}
secrets { ike { secret = swordfish } }
";

fn errors(text: &str) -> Vec<String> {
    match parse_str("t.conf", text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// A sound file with `conn` in its connection and `child` in its child, both on lines of their own.
fn with(conn: &str, child: &str) -> String {
    format!(
        "connections {{ c {{\n{conn}\nlocal {{ auth = psk }}\nremote {{ auth = psk }}\nchildren {{ k {{\n{child}\n}} }} }} }}\n\
         secrets {{ ike {{ secret = x }} }}\n"
    )
}

#[test]
fn the_manuals_example_loads() {
    let config = parse_str("t.conf", OPERATOR).unwrap();
    let conn = &config.connections[0];
    assert_eq!(
        conn.remote_addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["198.51.100.7", "2001:db8::7"]
    );
    assert_eq!(conn.local.id.as_ref().unwrap().to_string(), "branch.example.org");
    assert_eq!(conn.remote.id.as_ref().unwrap().to_string(), "hq.example.org");
    let child = &conn.children[0];
    assert_eq!(child.local_ts[0].to_string(), "10.1.0.0/16");
    assert_eq!(child.remote_ts[0].to_string(), "10.2.0.0/16");
    assert_eq!((child.start_action, child.dpd_action), (StartAction::Start, DpdAction::Restart));
    assert_eq!(&*config.secrets[0].secret, b"abcd");
    assert_eq!((conn.mobike, conn.mobike_x), (true, MobikeX::Yes));
    assert_eq!(conn.paths.interfaces, ["wan0", "lte0"]);
    assert!(
        conn.paths.allows("192.0.2.7".parse().unwrap()) && !conn.paths.allows("192.0.3.7".parse().unwrap())
    );
    assert_eq!((conn.paths.preference("lte0"), conn.paths.policies[0].rate), (50, Some(50_000_000)));
}

#[test]
fn a_net_to_net_file_of_swanctl_loads() {
    let config = parse_str("t.conf", NET2NET).unwrap();
    let conn = config.connection("gw-gw").unwrap();
    let child = &conn.children[0];
    assert_eq!(child.rekey_time, Duration::from_secs(5400));
    assert_eq!(child.life_time, Duration::from_secs(5940));
    assert_eq!(child.rand_time, Duration::from_secs(540));
    assert_eq!(child.limits.soft_bytes, Some(500_000_000));
    assert_eq!(child.limits.hard_bytes, Some(550_000_000));
    assert_eq!(child.limits.hard_packets, Some(1_100_000));
    assert_eq!(config.secrets[0].ids.len(), 2);
    assert_eq!(config.secrets[0].secret.len(), 24);
    assert_eq!(&*config.secrets[1].secret, b"a \"quoted\" key # with all");
    assert_eq!(&*config.secrets[2].secret, b"un{quoted=");
}

#[test]
fn a_transport_file_of_swanctl_loads() {
    let config = parse_str("t.conf", TRANSPORT).unwrap();
    let child = &config.connections[0].children[0];
    assert_eq!(
        (child.mode, child.start_action, child.close_action),
        (Mode::Transport, StartAction::Trap, StartAction::Start)
    );
    assert_eq!(child.copy_dscp, CopyDscp::No);
    assert_eq!(child.local_ts[0].to_string(), "dynamic");
}

#[test]
fn a_trap_stays_for_the_next_packet() {
    let text = with("remote_addrs = 192.0.2.1", "start_action = trap\nclose_action = trap");
    let child = &parse_str("t.conf", &text).unwrap().connections[0].children[0];
    assert_eq!((child.start_action, child.close_action), (StartAction::Trap, StartAction::Trap));
}

#[test]
fn child_sas_for_single_workers_are_a_choice_of_yes_and_no() {
    let child = |said: &str| parse_str("t.conf", &with("", said)).unwrap().connections[0].children[0].clone();
    for (said, expected) in [("", None), ("per_cpu_sas = yes", Some(true)), ("per_cpu_sas = no", Some(false))]
    {
        assert_eq!(child(said).per_cpu_sas, expected);
    }
    let shell = child("updown = /usr/lib/ipsec/_updown iptables\nhostaccess = yes");
    assert_eq!((shell.updown.as_deref(), shell.hostaccess), (Some("/usr/lib/ipsec/_updown iptables"), true));
    for (said, expected) in
        [("", 0), ("tfc_padding = 0", 0), ("tfc_padding = 1000", 1000), ("tfc_padding = mtu", u16::MAX)]
    {
        assert_eq!(child(said).tfc_padding, expected, "{said}");
    }
    let config = parse_str("t.conf", &with("", "per_cpu_sas = yes")).unwrap();
    assert!(config.describe().contains("further Child SAs for single workers"));
    let refused = &errors(&with("", "per_cpu_sas = encap"))[0];
    assert!(
        refused.starts_with("t.conf:6:15: found 'encap' for 'per_cpu_sas'; expected yes or no"),
        "{refused}"
    );
}

#[test]
fn what_is_not_said_has_the_documented_default() {
    assert_eq!(parse_str("t.conf", "").unwrap(), Config::default());
    let config = parse_str("t.conf", &with("", "")).unwrap();
    let mut expected = Connection::new("c");
    expected.children.push(Child::new("k"));
    assert_eq!(config.connections, [expected]);
    assert_eq!(config.daemon, DaemonSettings::default());
}

#[test]
fn the_daemons_own_settings() {
    let config = parse_str(
        "t.conf",
        "mobikex { port = 1500  port_nat_t = 14500  tun = mx7  mtu = 1380  workers = 2  pin = yes  table = 777\n\
         priority = 100  mark = 0x77  max_child_sas = 1024  cookie_threshold = 0  half_open_limit = 500\n\
         offload = no  busy_poll = 50us  fragment_size = 576 }\n",
    );
    let config = config.unwrap();
    let device = "  TUN device mx7, MTU 1380, 2 packet workers, pinned, polling for 50us before they wait, without offloads";
    assert!(config.describe().lines().any(|line| line == device), "{}", config.describe());
    let d = config.daemon;
    assert!(!d.offload && DaemonSettings::default().offload);
    assert_eq!(
        (d.busy_poll, DaemonSettings::default().busy_poll),
        (Duration::from_micros(50), Duration::ZERO)
    );
    assert_eq!(
        (d.port, d.port_nat_t, d.tun.as_str(), d.mtu, d.workers, d.pin),
        (1500, 14_500, "mx7", 1380, Some(2), true)
    );
    assert_eq!((d.table, d.priority, d.mark, d.max_child_sas), (777, 100, 0x77, 1024));
    assert_eq!((d.cookie_threshold, d.half_open_limit, d.fragment_size), (0, 500, 576));
}

#[test]
fn values_keep_their_spaces_and_stop_where_they_should() {
    for (child, shown) in [
        ("local_ts = 10.0.0.0/8, 10.1.0.0/16 , dynamic", "10.0.0.0/8 10.1.0.0/16 dynamic"),
        ("local_ts=10.0.0.0/8# a comment", "10.0.0.0/8"),
        ("local_ts = 10.0.0.0/8,   10.1.0.0/16", "10.0.0.0/8 10.1.0.0/16"),
        ("local_ts = 10.0.0.0/8\tmode=tunnel", "10.0.0.0/8"),
        ("local_ts = \"10.0.0.0/8, 10.1.0.0/16\"  mode = tunnel", "10.0.0.0/8 10.1.0.0/16"),
        ("local_ts = 10.0.0.0/8\r", "10.0.0.0/8"),
    ] {
        let config = parse_str("t.conf", &with("", child)).unwrap_or_else(|e| panic!("{child}: {e:?}"));
        let ts: Vec<_> = config.connections[0].children[0].local_ts.iter().map(ToString::to_string).collect();
        assert_eq!(ts.join(" "), shown, "{child}");
    }
    // The brace may stand on the next line, and sections of fixed names may be written twice.
    let text =
        "connections\n# here\n{\n}\nsecrets { ike1 { secret = a b } }\nsecrets { ike2 { secret = c } }";
    let config = parse_str("t.conf", text).unwrap();
    assert_eq!(&*config.secrets[0].secret, b"a b");
    assert_eq!(config.secrets[1].name, "ike2");
}

#[test]
fn mistakes_in_values_say_where_and_what_instead() {
    for (conn, child, expected) in [
        (
            "rekey_tiem = 4h",
            "",
            "t.conf:2:1: found unknown option 'rekey_tiem' in a connection; did you mean 'rekey_time'?",
        ),
        (
            "remote_adrs = 192.0.2.1",
            "",
            "t.conf:2:1: found unknown option 'remote_adrs' in a connection; did you mean 'remote_addrs'?",
        ),
        (
            "rekey_time = 4w",
            "",
            "t.conf:2:14: found '4w' for 'rekey_time'; expected a time such as 90, 90s, 5m, 4h or 1d, at most 3650d",
        ),
        ("mobike = perhaps", "", "t.conf:2:10: found 'perhaps' for 'mobike'; expected yes or no"),
        (
            "fragmentation = maybe",
            "",
            "t.conf:2:17: found 'maybe' for 'fragmentation'; expected yes, accept, force or no",
        ),
        ("mobike_critical = 2", "", "t.conf:2:19: found '2' for 'mobike_critical'; expected yes or no"),
        ("mobike_x = always", "", "t.conf:2:12: found 'always' for 'mobike_x'; expected yes, no or require"),
        (
            "vips = ::1",
            "",
            "t.conf:2:8: found '::1' for 'vips'; expected 0.0.0.0, :: or the address to ask for",
        ),
        ("vips = ::, fd00::1", "", "t.conf:2:8: found several virtual addresses of a family; expected one"),
        ("pull = yes", "", "t.conf:2:1: option 'pull' is not available in this version"),
        ("pools = rw", "", "t.conf:2:9: connection 'c' names the pool 'rw', which is not in 'pools { ... }'"),
        (
            "paths { scheduler = fast }",
            "",
            "t.conf:2:21: found 'fast' for 'scheduler'; expected one of flow, packet, redundant, backup",
        ),
        (
            "paths { wan0 { rate = 50 } }",
            "",
            "t.conf:2:23: found '50' for 'rate'; expected a rate such as 800kbit, 50mbit or 1gbit",
        ),
        (
            "children = net",
            "",
            "t.conf:2:1: found unknown option 'children' in a connection; 'children' is a section: write 'children { ... }'",
        ),
        (
            "encap { }",
            "",
            "t.conf:2:1: found unknown section 'encap' in a connection; 'encap' is an option: write 'encap = ...'",
        ),
        (
            "local { certs = x.pem }",
            "",
            "t.conf:2:17: found 'certs' beside 'auth = psk', which has no use for it",
        ),
        ("encap = maybe", "", "t.conf:2:9: found 'maybe' for 'encap'; expected yes or no"),
        ("encap =", "", "t.conf:2:8: found no value for option 'encap'; expected one"),
        (
            "nat_traversal = no\nencap = yes",
            "",
            "t.conf:3:9: found 'encap = yes' beside 'nat_traversal = no'; expected 'encap = no'",
        ),
        (
            "encap = yes\nencap = yes",
            "",
            "t.conf:3:1: option 'encap' is set twice; the first time in t.conf:2",
        ),
        (
            "version = 1",
            "",
            "t.conf:2:11: 'version = 1' is not available in this version; expected 'version = 2'",
        ),
        (
            "unique = perhaps",
            "",
            "t.conf:2:10: found 'perhaps' for 'unique'; expected one of no, never, keep, replace",
        ),
        (
            "childless = yes",
            "",
            "t.conf:2:13: found 'yes' for 'childless'; expected one of allow, never, prefer, force",
        ),
        (
            "reauth_time = 5h\nrand_time = 6h",
            "",
            "t.conf:3:13: 'rand_time' of 21600 s is longer than 'reauth_time' of 18000 s",
        ),
        (
            "",
            "start_action = restrat",
            "t.conf:6:16: found 'restrat' for 'start_action'; expected one of none, trap, start, clear, hold, route, restart, or trap|start",
        ),
        ("rand_time = 5h", "", "t.conf:2:13: 'rand_time' of 18000 s is longer than 'rekey_time' of 14400 s"),
        (
            "remote_addrs = 192.0.2.1,  gw.example.org",
            "",
            "t.conf:2:28: found 'gw.example.org' for 'remote_addrs'; expected %any, an address, a prefix or a range of addresses; host names are not available in this version",
        ),
        (
            "local_addrs = 192.0.2.1\nremote_addrs = 2001:db8::1",
            "",
            "t.conf:3:16: 'local_addrs' and 'remote_addrs' have no address family in common",
        ),
        (
            "proposals = aes256gcm16-prfsha384-x25519, des-md5-modp768",
            "",
            "t.conf:2:43: found 'des-md5-modp768' for 'proposals'; expected algorithms joined by '-', or default: 'des' is not an algorithm that is available here",
        ),
        (
            "local-2 {\n auth = psk\n round = last }",
            "",
            "t.conf:4:10: found 'last' for 'round'; expected a number from 0 to 4294967295",
        ),
        (
            "remote-1 {\n auth = psk\n round = 2 }\nremote-2 {\n auth = psk\n round = 2 }",
            "",
            "t.conf:7:10: 'round = 2' of 'remote' is taken already, in t.conf:4",
        ),
        (
            "local-1 { auth = psk }\nlocal-2 { auth = psk }\nlocal-3 { auth = psk }",
            "",
            "t.conf:5:1: section 'local' is round 4 of 'local'; expected at most 3",
        ),
        ("", "updown =", "t.conf:6:9: found no value for option 'updown'; expected one"),
        (
            "",
            "mode = transport\ntfc_padding = 100",
            "t.conf:7:15: found 'tfc_padding' in transport mode, in which a receiver could not tell it from the packet; expected 'tfc_padding = 0'",
        ),
        (
            "",
            "tfc_padding = most",
            "t.conf:6:15: found 'most' for 'tfc_padding'; expected mtu, or a number from 0 to 65535",
        ),
        ("", "reqid = 7", "t.conf:6:1: option 'reqid' is not available in this version"),
        (
            "",
            "mode = beet",
            "t.conf:6:8: found 'beet' for 'mode'; expected one of tunnel, transport; this one is not available in this version",
        ),
        (
            "",
            "replay_window = 32",
            "t.conf:6:17: found '32' for 'replay_window'; expected a number from 64 to 65536",
        ),
        (
            "",
            "rekey_time = 1h\nlife_time = 30m",
            "t.conf:7:13: 'life_time' of 1800 s ends before 'rekey_time' of 3600 s; expected more",
        ),
        (
            "",
            "rekey_bytes = 2g\nlife_bytes = 1g",
            "t.conf:7:14: 'life_bytes' 1073741824 is not above 'rekey_bytes' 2147483648; expected more",
        ),
        (
            "",
            "local_ts = 10.0.0.0/8\nremote_ts = fd00::/8",
            "t.conf:6:12: 'local_ts' has IPv4 selectors, but 'remote_ts' has none",
        ),
        (
            "",
            "mode = transport\nlocal_ts = 10.0.0.0/8",
            "t.conf:7:12: found '10.0.0.0/8' for 'local_ts' in transport mode, which carries only the two ends' own packets; expected dynamic or single addresses",
        ),
        (
            "",
            "start_action = start",
            "t.conf:6:16: 'start_action' needs a peer to go to, but 'remote_addrs' has no single address",
        ),
        (
            "",
            "encap = no",
            "t.conf:6:9: found 'encap = no' in a child of a connection with 'encap = yes'; expected the same",
        ),
        (
            "",
            "mode = tunnel encap = yes",
            "t.conf:6:15: found another '=' in a value; expected at least two spaces or a new line before the next option (or quotes around the value)",
        ),
        (
            "",
            "local_ts = \"10.0.0.0/8",
            "t.conf:6:12: found a quoted string that does not end on its line; expected '\"'",
        ),
        ("", "mode", "t.conf:6:5: found the end of the line after 'mode'; expected '=' or '{'"),
        ("", "mode tunnel", "t.conf:6:6: found a word after 'mode'; expected '=' or '{'"),
        ("", "= tunnel", "t.conf:6:1: found '='; expected a name or '}'"),
        ("", "} k {", "t.conf:6:3: child 'k' is already defined in t.conf:5"),
    ] {
        let found = errors(&with(conn, child));
        assert!(
            found.iter().any(|e| e == expected),
            "{conn}|{child}\n wanted {expected}\n found  {found:#?}"
        );
    }
}

/// A build that cannot sign says so where it is asked to.
#[cfg(not(feature = "aws-lc"))]
#[test]
fn signatures_that_are_not_built_in_are_refused_with_their_line() {
    for auth in ["auth = pubkey", "id = x"] {
        let found = errors(&with("", "").replacen("auth = psk", auth, 1));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("t.conf:3:") && found[0].contains("psk"), "{found:?}");
    }
}

#[test]
fn rounds_stand_in_the_order_of_their_numbers_and_then_of_the_file() {
    let ids = |rounds: Vec<&AuthRound>| -> Vec<String> {
        rounds.iter().map(|round| round.id.as_ref().unwrap().to_string()).collect()
    };
    let text = |local: &str, remote: &str| {
        format!(
            "connections {{ home {{\n{local}\n{remote}\nchildren {{ k {{ }} }} }} }}\n\
             secrets {{ ike {{ secret = x }}\n eap-carol {{ id = carol  secret = y }} }}\n"
        )
    };
    let part = |name: &str, id: &str, more: &str| format!("{name} {{\n auth = psk\n id = {id}\n{more} }}\n");
    let local = part("local-b", "b.example", "")
        + &part("local-a", "a.example", "round = 7")
        + &part("local", "c.example", "round = 2");
    let remote = part("remote-1", "d.example", "") + &part("remote-2", "e.example", "");
    let config = parse_str("t.conf", &text(&local, &remote)).unwrap();
    let conn = &config.connections[0];
    assert_eq!(ids(conn.locals().collect()), ["b.example", "c.example", "a.example"]);
    assert_eq!(ids(conn.remotes().collect()), ["d.example", "e.example"]);
    assert!(conn.has_rounds());
    // Two sections of one name are one round, wherever they stand.
    let local = "local { auth = psk }\nlocal-2 { auth = psk }\nlocal { id = b.example }\n";
    let config = parse_str("t.conf", &text(local, "remote { auth = psk }")).unwrap();
    assert_eq!(config.connections[0].locals().count(), 2);
    assert_eq!(config.connections[0].local.id.as_ref().unwrap().to_string(), "b.example");
    // What `check` shows, and what the status view has.
    let remote = part("remote-1", "d.example", "") + "remote-2 { auth = eap-mschapv2  eap_id = %any }\n";
    let config = parse_str("t.conf", &text("local { auth = psk  id = moon }", &remote)).unwrap();
    let shown = config.describe();
    assert!(shown.contains("\n  we are moon by pre-shared key\n"), "{shown}");
    let theirs =
        "the peer must be d.example by pre-shared key; and then any identity by EAP_MSCHAPV2 as %any";
    assert!(shown.contains(theirs), "{shown}");
    assert_eq!(
        serde_json::to_value(&config).unwrap()["connections"][0]["further_remote"][0]["eap_id"],
        "%any"
    );
    // A round is refused where it stands.
    let remote = "remote { auth = psk }\nremote-2 { auth = eap-mschapv2 }";
    let both = errors(&text("local { auth = psk }\nlocal-2 { auth = eap-mschapv2  eap_id = carol }", remote));
    assert_eq!(both.len(), 1, "{both:?}");
    assert!(
        both[0].starts_with("t.conf:5:1: found EAP on both sides of a connection with several"),
        "{both:?}"
    );
    let nobody = errors(&text(
        "local { auth = psk }\nlocal-2 { auth = eap-mschapv2  eap_id = dave }",
        "remote { auth = psk }",
    ));
    assert_eq!(nobody.len(), 1, "{nobody:?}");
    assert!(nobody[0].starts_with("t.conf:3:1: found EAP without a secret"), "{nobody:?}");
}

/// The shape of a roadwarrior and its gateway; the certificates are those of the files' tests.
#[test]
fn eap_has_identities_and_secrets() {
    let conn = |local: &str, remote: &str, secrets: &str| {
        format!(
            "connections {{ home {{\nlocal {{ {local} }}\nremote {{ {remote} }}\nchildren {{ k {{ }} }} }} }}\n\
             secrets {{\n ike {{ secret = x }}\n{secrets}\n}}\n"
        )
    };
    let carol = "eap-carol { id = carol  secret = Ar3etTnp }";
    let load = |local: &str, remote: &str| parse_str("t.conf", &conn(local, remote, carol)).unwrap();
    let gateway = load("auth = psk", "auth = eap-mschapv2\neap_id = %any");
    let (remote, secret) = (&gateway.connections[0].remote, &gateway.eap_secrets[0]);
    assert_eq!((remote.eap(), &remote.eap_id), (Some(&[Kind::Mschapv2][..]), &EapId::Any));
    assert_eq!((secret.ids.as_slice(), &secret.hash), (&["carol".to_string()][..], &NtHash::of("Ar3etTnp")));
    assert!(find_eap_secret(&gateway.eap_secrets, b"carol", false).is_some());
    assert!(find_eap_secret(&gateway.eap_secrets, b"Carol", true).is_none());
    // Of all methods those that there is something for.
    let local = load("auth = eap\neap_id = carol", "auth = psk").connections[0].local.clone();
    assert_eq!((local.eap(), &local.eap_id), (Some(&[Kind::Mschapv2][..]), &EapId::Name("carol".into())));
    let shown = gateway.describe();
    assert!(shown.contains("the peer must be any identity by EAP_MSCHAPV2 as %any"), "{shown}");
    assert!(shown.contains("password in EAP of carol") && !shown.contains("Ar3"), "{shown}");
    let ntlm = |value: &str| {
        errors(&conn("auth = psk", "auth = eap-mschapv2", &format!("ntlm-x {{ id = x\nsecret = {value} }}")))
    };
    assert_eq!(ntlm("0x44EBBA8D5312B8D611474411F56989AE"), [""; 0]);
    assert_eq!(ntlm("short").len(), 1);
    for (local, remote, secrets, error) in [
        ("auth = eap-mschapv2  eap_id = dave", "auth = psk", carol, "t.conf:2:1: found EAP without a secret"),
        ("auth = psk", "auth = eap-mschapv2", "eap { secret = x }", "t.conf:3:1: found EAP without a secret"),
        (
            "auth = eap-mschapv2  eap_id = carol",
            "auth = eap-mschapv2",
            carol,
            "t.conf:2:1: found EAP on both",
        ),
        ("auth = psk  eap_id = carol", "auth = psk", "", "t.conf:2:"),
        ("auth = psk", "auth = eap-mschapv2  certs = x.pem", carol, "t.conf:3:"),
        ("auth = psk", "auth = eap-radius", carol, "t.conf:3:"),
    ] {
        let found = errors(&conn(local, remote, secrets));
        assert!(found.first().is_some_and(|first| first.starts_with(error)), "{local} {remote}: {found:?}");
    }
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(
        errors(&with("", "").replacen("auth = psk", "auth = eap-aka", 1)),
        [
            "t.conf:3:16: found 'eap-aka' for 'auth'; expected eap, eap-dynamic, eap-mschapv2 or eap-tls; other methods are not available in this version"
        ]
    );
    assert_eq!(
        errors("connections {\n c {\n remote { auth = psk  id = x }\n }\n}\n"),
        ["t.conf:2:2: connection 'c' has no section 'local'; expected 'local { auth = psk }'"]
    );
    let alone = |more: &str| {
        format!(
            "connections {{\n c {{\n{more}\nlocal {{ auth = psk }}\nremote {{ auth = psk }}\n}}\n}}\nsecrets {{ ike {{ secret = x }} }}\n"
        )
    };
    for more in ["", "childless = allow", "childless = prefer", "childless = force", "children { }"] {
        let config = parse_str("t.conf", &alone(more)).unwrap();
        assert!(config.connections[0].children.is_empty());
        assert!(config.describe().contains("  no children: an IKE SA alone"), "{}", config.describe());
    }
    assert_eq!(
        errors(&alone("childless = never\nvips = 0.0.0.0")),
        [
            "t.conf:3:13: found 'childless = never' in connection 'c', which has no children; expected 'children { NAME { ... } }', or another value",
            "t.conf:4:8: found 'vips' in connection 'c', which has no children to use them; expected 'children { NAME { ... } }', or no 'vips'"
        ]
    );
    let other = with("", "").replace("remote { auth = psk }", "remote { auth = psk  id = b }");
    assert_eq!(errors(&other), [""; 0]);
    let other = other.replace("secret = x", "id = a  secret = x");
    assert_eq!(
        errors(&other),
        [
            "t.conf:1:15: connection 'c' has 'auth = psk', but no secret is for 'b'; expected one in 'secrets { ike-NAME { ... } }'"
        ]
    );
    assert_eq!(
        errors("secrets { ike-a { id = a } }"),
        ["t.conf:1:11: secret 'ike-a' has no 'secret'; expected 'secret = ...'"]
    );
    // What refers to another section is still read, so that nothing after it is taken for a mistake.
    assert_eq!(
        errors("connections {\n a : b, c.d {\n pull = ::\n }\n}\n"),
        [
            "t.conf:2:4: references to other sections (':') are not available in this version",
            "t.conf:3:2: option 'pull' is not available in this version",
        ]
    );
    assert_eq!(errors("}"), ["t.conf:1:1: found '}' without a section to close"]);
    assert_eq!(
        errors("connections {\n a {\n"),
        ["t.conf:3:1: found the end of the file; expected '}' for section 'a' of t.conf:2"]
    );
}

#[test]
fn all_mistakes_are_reported_at_once_in_the_order_of_the_file() {
    let text = with("encap = perhaps\npull = yes", "mode = beet\nfoo = bar");
    let lines: Vec<u32> = parse_str("t.conf", &text).unwrap_err().iter().map(|e| e.line).collect();
    assert_eq!(lines, [2, 3, 7, 8]);
    assert_eq!(
        errors(
            "authorities { a { } }\nconections { }\nsecrets { ppk-1 { } xauth { } }\nmobikex { mtu = 12 }"
        ),
        [
            "t.conf:1:1: section 'authorities' is not available in this version",
            "t.conf:2:1: found unknown section 'conections' in the top level; did you mean 'connections'?",
            "t.conf:3:11: section 'ppk-1' is not available in this version",
            "t.conf:3:21: section 'xauth' is not available in this version",
            "t.conf:4:17: found '12' for 'mtu'; expected a number from 576 to 65500",
        ]
    );
}

#[test]
fn no_message_and_no_view_shows_a_key() {
    for text in [
        "secrets { ike { secret = 0xhushhush } }",
        "secrets { ike { secret = 0s!hushhush } }",
        "secrets { ike { secret \"hushhush\" } }",
        "secrets { ike { secret = \"hushhush } }",
        "secrets { ike { hushhush } }",
        "secrets { ike { secret = two  hushhush = more } }",
        "secrets { ike { secret = a hushhush = b } }",
        "secrets { ike { secret = { hushhush } } }",
    ] {
        let found = errors(text);
        assert!(!found.is_empty(), "{text}");
        assert!(!found.iter().any(|e| e.contains("hushhush")), "{found:?}");
    }
    let config = parse_str("t.conf", "secrets { ike-7 { id = a.example  secret = hushhush } }").unwrap();
    for view in [config.describe(), serde_json::to_string(&config).unwrap()] {
        assert!(!view.contains("hushhush") && view.contains("a.example"), "{view}");
    }
    assert!(format!("{config:?}").contains("Secret(..)"));
}

#[test]
fn the_description_says_what_would_be_done() {
    let text = parse_str("t.conf", OPERATOR).unwrap().describe();
    for line in [
        "connection home: %any === 198.51.100.7, 2001:db8::7",
        "  we are branch.example.org, the peer must be hq.example.org, both by pre-shared key",
        "  IKE proposals IKE:AES_GCM_16_256/PRF_HMAC_SHA2_384/CURVE_25519",
        "  child home/net: 10.1.0.0/16 === 10.2.0.0/16, tunnel mode",
        "    rekeyed after 1 h (up to 6 m earlier), closed after 66 m",
        "    set up at start; set up again when the peer is dead",
        "secret ike-hq: pre-shared key for hq.example.org",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
}

#[test]
fn the_serialized_form_has_units_in_its_names() {
    let json = serde_json::to_value(parse_str("t.conf", OPERATOR).unwrap()).unwrap();
    let conn = &json["connections"][0];
    assert_eq!(conn["rekey_time_seconds"], 14_400);
    assert_eq!(conn["children"][0]["local_ts"][0], "10.1.0.0/16");
    assert_eq!(conn["remote"]["id"], "hq.example.org");
    assert_eq!(json["secrets"][0]["ids"][0], "hq.example.org");
    assert!(json["secrets"][0].get("secret").is_none());
}

#[test]
fn included_files_count_as_if_written_there() {
    let dir = std::env::temp_dir().join(format!("mobikex-config-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("conf.d")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write("main.conf", "include conf.d/*.conf\nmobikex { include mx.conf }\ninclude none.d/*.conf\n");
    write("mx.conf", "mtu = 1300\n");
    write("conf.d/a.conf", OPERATOR);
    write("conf.d/ignored.bak", "what");
    let config = load(&dir.join("main.conf")).unwrap();
    assert_eq!((config.daemon.mtu, config.connections.len()), (1300, 1));

    write("conf.d/b.conf", "\nsecrets { ike-hq { secret = again } }\nbogus = 1\n");
    write("loop.conf", "include loop.conf\ninclude missing.conf\n");
    let found: Vec<_> = load(&dir.join("main.conf")).unwrap_err().iter().map(ToString::to_string).collect();
    let b = dir.join("conf.d/b.conf").display().to_string();
    let a = dir.join("conf.d/a.conf").display().to_string();
    assert_eq!(
        found,
        [
            format!("{b}:2:11: secret 'ike-hq' is already defined in {a}:25"),
            format!("{b}:3:1: found unknown option 'bogus' in the top level"),
        ]
    );
    let found: Vec<_> = load(&dir.join("loop.conf")).unwrap_err().iter().map(ToString::to_string).collect();
    assert!(
        found[0].contains("loop.conf:1:9: found an include of") && found[0].contains("from inside itself"),
        "{found:?}"
    );
    assert!(found[1].contains("loop.conf:2:9: cannot read"), "{found:?}");
    std::fs::remove_dir_all(&dir).unwrap();
    let gone = load(&dir.join("main.conf")).unwrap_err();
    assert_eq!((gone.len(), gone[0].line), (1, 0));
}

#[test]
fn nesting_without_end_is_refused() {
    let found = errors(&"a { ".repeat(100_000));
    assert!(found.iter().any(|e| e.contains("nested deeper than 16")), "{found:?}");
}

proptest! {
    #[test]
    fn any_text_is_answered_without_a_panic(text in "(\\PC|[ \\n\\t{}=#\",]){0,200}") {
        let _ = parse_str("t.conf", &text);
    }

    #[test]
    fn any_mutilated_file_is_answered_without_a_panic(
        which in 0usize..3,
        cuts in prop::collection::vec((any::<prop::sample::Index>(), "[ \\n{}=#\",0-9a-z%\\[\\]/.:-]{0,3}"), 1..6),
    ) {
        let mut text = [OPERATOR, NET2NET, TRANSPORT][which].to_string();
        for (at, with) in cuts {
            let at = at.index(text.len());
            if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                text.replace_range(at..at + 1, &with);
            }
        }
        if let Err(errors) = parse_str("t.conf", &text) {
            prop_assert!(!errors.is_empty());
            prop_assert!(errors.iter().all(|e| e.line > 0 && e.column > 0));
        }
    }
}

/// The shape of strongSwan's roadwarrior scenarios, with virtual addresses, on both sides.
#[test]
fn roadwarriors_of_swanctl_load_as_they_are() {
    let gateway = "connections {\n rw {\n local_addrs = 192.168.0.1\n pools = rw_pool, rw_pool6\n local {\n auth = psk\n id = 192.168.0.1\n }\n\
         remote {\n auth = psk\n }\n children {\n net {\n local_ts = 10.1.0.0/16, fec1::/16\n esp_proposals = aes128gcm128-x25519\n }\n }\n\
         version = 2\n proposals = aes128-sha256-x25519\n }\n}\n\
         secrets {\n ike {\n secret = x\n }\n}\n\
         pools {\n rw_pool {\n addrs = 10.3.0.0/28\n dns = 192.168.0.150, fec1::10\n netmask = 255.255.255.0\n\
         split_include = 10.1.0.0/16\n }\n rw_pool6 {\n addrs = fec3::/120\n }\n}\n";
    let config = parse_str("t.conf", gateway).unwrap();
    assert_eq!(config.connections[0].pools, ["rw_pool", "rw_pool6"]);
    let pool = &config.pools[0];
    assert_eq!((pool.addrs.to_string(), pool.addrs.size()), ("10.3.0.1-10.3.0.14".to_string(), 14));
    assert_eq!((pool.dns.len(), pool.netmask), (2, Some([255, 255, 255, 0].into())));
    assert_eq!(pool.subnets, [("10.1.0.0".parse().unwrap(), 16)]);
    let said = config.describe();
    assert!(said.contains("pool rw_pool6: fec3::1-fec3::fe, 254 addresses"), "{said}");
    let client = with("remote_addrs = 192.168.0.1\nvips = 0.0.0.0, ::", "remote_ts = 10.1.0.0/16, fec1::/16");
    let config = parse_str("t.conf", &client).unwrap();
    assert_eq!(config.connections[0].vips.len(), 2);
    assert!(config.connections[0].children[0].local_ts[0].to_string() == "dynamic");
    // One address must not come from two pools, and an address has to be one that a host can have.
    let error = |pools: &str| errors(&format!("pools {{ {pools} }}")).join("\n");
    assert!(
        error("a { addrs = 10.0.0.0/24\n }\n b { addrs = 10.0.0.9\n }")
            .contains("'b' shares addresses with pool 'a'")
    );
    assert!(error("a { dns = 10.0.0.1\n }").contains("pool 'a' has no 'addrs'"));
    assert!(error("a { addrs = 224.0.0.1-224.0.0.9\n }").contains("no host can have"));
}
