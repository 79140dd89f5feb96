//! Files of the shapes in which operators write swanctl.conf: they load as they are, or the line that cannot be served is
//! named and the rest loads without it.

use mobikex::config::Config;
use rcgen::KeyPair;

use crate::files::{Folder, P256, pem};
use crate::made::{Ca, key};

/// Two gateways, two networks, a secret.
const NET_TO_NET_PSK: &str = "
connections {

   gw-gw {
      local_addrs  = 192.168.0.1
      remote_addrs = 192.168.0.2

      local {
         auth = psk
         id = moon.example.org
      }
      remote {
         auth = psk
         id = sun.example.org
      }
      children {
         net-net {
            local_ts  = 10.1.0.0/16
            remote_ts = 10.2.0.0/16

            rekey_time = 5400
            rekey_bytes = 500000000
            rekey_packets = 1000000
            esp_proposals = aes128gcm128-x25519
         }
      }
      version = 2
      mobike = no
      reauth_time = 10800
      proposals = aes128-sha256-x25519
   }
}

secrets {
   ike-1 {
      id-1 = moon.example.org
      secret = 0sv+NkxY9LLZvwj4qCC2o/gGrWDF2d21jL
   }
   ike-2 {
      id-2 = sun.example.org
      secret = 0x45a30759df97dc26a15b88ff
   }
   ike-3 {
      id-3 = moon.example.org
      id-4 = sun.example.org
      secret = \"This is a strong password\"
   }
}
";

/// The same with certificates, and a script that opens the firewall.
const NET_TO_NET_CERT: &str = "
connections {
   gw-gw {
      local_addrs  = 192.168.0.1
      remote_addrs = 192.168.0.2
      local {
         auth = pubkey
         certs = moon.pem
         id = moon.example.org
      }
      remote {
         auth = pubkey
         id = sun.example.org
      }
      children {
         net-net {
            local_ts  = 10.1.0.0/16
            remote_ts = 10.2.0.0/16
            start_action = none
            updown = /usr/local/libexec/ipsec/_updown iptables
            rekey_time = 10m
            esp_proposals = aes128gcm128-modp3072
         }
      }
      version = 2
      mobike = no
      proposals = aes128-sha256-modp3072
   }
}
";

/// A gateway for roadwarriors with certificates.
const ROADWARRIORS_CERT: &str = "
connections {
   rw {
      local_addrs  = 192.168.0.1
      local {
         auth = pubkey
         certs = moon.pem
         id = moon.example.org
      }
      remote {
         auth = pubkey
      }
      children {
         net {
            local_ts  = 10.1.0.0/16
            esp_proposals = aes128gcm128-x25519
         }
      }
      version = 2
      proposals = aes128-sha256-x25519
   }
}
";

/// One of them, with addresses of the gateway's pool.
const ROADWARRIOR_VIPS: &str = "
connections {
   home {
      local_addrs  = 192.168.0.100
      remote_addrs = 192.168.0.1
      vips = 0.0.0.0, ::
      local {
         auth = pubkey
         certs = moon.pem
         id = moon.example.org
      }
      remote {
         auth = pubkey
         id = \"C=CH, O=Example, CN=sun.example.org\"
      }
      children {
         home {
            remote_ts = 10.1.0.0/16
            start_action = trap
            close_action = none
            dpd_action = restart
         }
      }
      version = 2
      dpd_delay = 60s
      encap = yes
      keyingtries = 0
   }
}
";

/// A gateway that tells roadwarriors apart by the addresses that they have for identities.
const ROADWARRIORS_PSK: &str = "
connections {
   rw-1 {
      local_addrs  = 192.168.0.1
      pools = rw_pool
      local {
         auth = psk
         id = 192.168.0.1
      }
      remote {
         auth = psk
         id = 192.168.0.100
      }
      children {
         net-1 {
            local_ts  = 10.1.0.0/28
            esp_proposals = aes128-sha256-x25519
         }
      }
      version = 2
      proposals = aes128-sha256-x25519
   }
   rw-2 {
      local_addrs  = 192.168.0.1
      pools = rw_pool
      local {
         auth = psk
         id = 192.168.0.1
      }
      remote {
         auth = psk
         id = 192.168.0.200
      }
      children {
         net-2 {
            local_ts  = 10.1.0.16/28
            mode = tunnel
         }
      }
      version = 2
   }
}
pools {
   rw_pool {
      addrs = 10.3.0.0/28
      dns = 10.1.0.20, 10.1.0.30
   }
}
secrets {
   ike-carol {
      id-1 = 192.168.0.100
      secret = 0sFpZAZqEN6Ti9sqt4ZP5EWcqx
   }
   ike-dave {
      id-1 = 192.168.0.200
      secret = 0sjVzONCF02ncsgiSlmIXeqhGN
   }
}
";

/// A host with two uplinks.
const TWO_UPLINKS: &str = "
connections {
   mobike {
      remote_addrs = 192.168.0.2
      local {
         auth = pubkey
         certs = moon.pem
         id = moon.example.org
      }
      remote {
         auth = pubkey
         id = sun.example.org
      }
      children {
         mobike {
            remote_ts = 10.2.0.0/16
            hostaccess = yes
            updown = /usr/local/libexec/ipsec/_updown iptables
            esp_proposals = aes128gcm128-x25519
         }
      }
      version = 2
      mobike = yes
      proposals = aes128-sha256-x25519
   }
}
";

/// A gateway that has a certificate, for people who have passwords.
const ROADWARRIORS_MSCHAPV2: &str = "
connections {
   rw-eap {
      local_addrs  = 192.168.0.1
      local {
         auth = pubkey
         certs = moon.pem
         id = moon.example.org
      }
      remote {
         auth = eap-mschapv2
         eap_id = %any
         id = *@example.org
      }
      children {
         net {
            local_ts  = 10.1.0.0/16
            esp_proposals = aes128gcm16-x25519, aes256-sha256
         }
      }
      version = 2
      send_certreq = no
      send_cert = always
      unique = replace
      fragmentation = yes
   }
}
secrets {
   eap-carol {
      id = carol@example.org
      secret = \"Ar3etTnp\"
   }
   eap-dave {
      id-1 = dave@example.org
      secret = \"W7R0g3do\"
   }
}
";

fn algorithms(ike: &str, esp: &str) -> String {
    NET_TO_NET_PSK
        .replace("proposals = aes128-sha256-x25519", &format!("proposals = {ike}"))
        .replace("esp_proposals = aes128gcm128-x25519", &format!("esp_proposals = {esp}"))
}

fn place(name: &str) -> Folder {
    let (folder, ca) = (Folder::new(name), Ca::new("root"));
    let key: KeyPair = key(P256);
    folder.put("x509ca/strongswanCert.pem", pem(ca.cert.der(), "CERTIFICATE"));
    folder.put("x509/moon.pem", pem(&ca.end("moon.example.org", &key, |_| {}), "CERTIFICATE"));
    folder.put("private/moonKey.pem", key.serialize_pem());
    folder
}

fn loads(name: &str, text: &str) -> Config {
    place(name).load_text(text).unwrap_or_else(|errors| panic!("{name}: {errors:#?}"))
}

#[test]
fn gateways_of_two_networks() {
    let text = loads("net2net-psk", NET_TO_NET_PSK).describe();
    assert!(text.contains("10.1.0.0/16 === 10.2.0.0/16"), "{text}");
    let text = loads("net2net-cert", NET_TO_NET_CERT).describe();
    assert!(text.contains("up and down are told to: /usr/local/libexec/ipsec/_updown iptables"), "{text}");
    assert!(text.contains("we are moon.example.org by signature"), "{text}");
}

#[test]
fn roadwarriors_and_their_gateways() {
    let config = loads("rw-cert", ROADWARRIORS_CERT);
    assert_eq!(config.connections[0].remote.id, None, "anybody with a certificate");
    loads("rw-vips", ROADWARRIOR_VIPS);
    assert_eq!(loads("rw-psk", ROADWARRIORS_PSK).connections.len(), 2);
    loads("rw-eap-mschapv2", ROADWARRIORS_MSCHAPV2);
}

#[test]
fn a_host_with_two_uplinks() {
    let config = loads("mobike", TWO_UPLINKS);
    assert!(config.connections[0].mobike && config.connections[0].children[0].hostaccess);
}

#[test]
fn algorithms_that_are_there_load_and_others_are_named_with_their_line() {
    let folder = place("alg");
    for (ike, esp) in [
        ("aes256-sha512-ecp521", "aes256-sha512-ecp521"),
        ("aes256gcm16-prfsha384-ecp256", "aes256gcm16-esn-noesn"),
        ("chacha20poly1305-prfsha256-x25519", "chacha20poly1305-x25519"),
        ("default", "default"),
    ] {
        folder.load_text(&algorithms(ike, esp)).unwrap_or_else(|errors| panic!("{ike} {esp}: {errors:?}"));
    }
    for (ike, esp) in [
        ("aes192-sha384-ecp384", "aes192gcm128-ecp384"),
        ("aes128ctr-sha256-modp2048", "aes128-sha256_96-modp2048"),
        ("aes128-sha1-modp2048", "aes128ccm128-modp3072"),
        ("aes128-aesxcbc-modp2048", "null-sha256"),
        ("camellia256-sha512-modp3072", "camellia192-sha384-modp3072"),
        ("3des-sha1-modp1024", "3des-sha1"),
    ] {
        let text = algorithms(ike, esp);
        let errors = folder.load_text(&text).map(|_| ()).expect_err(ike);
        assert_eq!(errors.len(), 2, "{errors:?}");
        for (error, proposal) in errors.iter().zip([esp, ike]) {
            assert!(error.contains(&format!("found '{proposal}'")), "{error}");
            let line = error.split(':').nth(1).and_then(|n| n.parse::<usize>().ok()).unwrap();
            assert!(
                text.lines().nth(line - 1).unwrap().ends_with(&format!("proposals = {proposal}")),
                "{error}"
            );
        }
    }
}
