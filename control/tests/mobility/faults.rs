//! Schedules that once went wrong, each as short as it could be made, with what was wrong.

mod crossing;
mod translated;

use mobikex::config::ReturnRoutability::{After, Off, Required};
use mobikex_common::addr::Scheduler::{Backup, Flow, Packet, Redundant};

use crate::schedule::Step::*;
use crate::schedule::{Schedule, Setup, Step};

/// What most of them have.
const CALM: Setup = Setup {
    extended: true,
    transport: false,
    scheduler: Flow,
    routability: Required,
    encap: true,
    private: false,
    filters: false,
    per_destination: false,
    v6: false,
    addresses: [1, 1],
    loss: 0,
    duplication: 0,
    reordering: 0,
};

fn fault(name: &'static str, seed: u64, setup: Setup, steps: &[(Step, u64)]) -> (&'static str, Schedule) {
    (name, Schedule { seed, setup, steps: steps.to_vec() })
}

pub fn all() -> Vec<(&'static str, Schedule)> {
    let version_1 = Setup { extended: false, ..CALM };
    let both = Setup { addresses: [2, 2], ..CALM };
    let behind_nat = Setup { private: true, addresses: [2, 2], ..CALM };
    let mut all = vec![
        fault(
            "the failed check of one address brought back another one that was removed",
            1002,
            Setup { scheduler: Redundant, encap: false, loss: 14, ..behind_nat },
            &[
                (Nat { on: true }, 19),
                (Add { host: 0, addr: 0 }, 279),
                (Add { host: 1, addr: 2 }, 4),
                (Remove { host: 1, addr: 1 }, 21),
            ],
        ),
        fault(
            "a victim got a request from each address of a multihomed host at once",
            1003,
            Setup { scheduler: Packet, addresses: [2, 1], ..version_1 },
            &[
                (Replace { host: 1, addr: 2 }, 25),
                (ForgeSource { host: 1, victim: 0, datagrams: 1 }, 2905),
                (Add { host: 1, addr: 0 }, 121),
            ],
        ),
        fault(
            "an address that was back before the answer to its UPDATE came counted as refused",
            1006,
            Setup { scheduler: Backup, routability: Off, filters: true, ..both },
            &[
                (Replace { host: 1, addr: 2 }, 136),
                (Add { host: 1, addr: 0 }, 708),
                (ReplaceBoth { addrs: [2, 0] }, 9046),
                (ReplaceBoth { addrs: [1, 1] }, 1237),
            ],
        ),
        fault(
            "in transport mode an address without a counterpart was no selector",
            1008,
            Setup {
                transport: true,
                scheduler: Redundant,
                routability: Off,
                encap: false,
                v6: true,
                addresses: [1, 2],
                ..CALM
            },
            &[],
        ),
        fault(
            "what an address behind a NAT was mapped to stayed with the peer when the address went",
            1019,
            Setup { scheduler: Backup, routability: After, loss: 14, reordering: 20, ..behind_nat },
            &[(Add { host: 1, addr: 2 }, 1480), (ReplaceBoth { addrs: [2, 0] }, 1342)],
        ),
        fault(
            "a datagram that was repeated counted as a sign of life",
            1017,
            Setup { scheduler: Backup, routability: Off, encap: false, v6: true, ..CALM },
            &[(Replay { datagrams: 5 }, 193)],
        ),
        fault(
            "in transport mode version 1 permitted no move",
            1026,
            Setup { transport: true, encap: false, filters: true, addresses: [2, 1], ..version_1 },
            &[(Add { host: 1, addr: 1 }, 1864), (ReplaceBoth { addrs: [2, 1] }, 1617)],
        ),
        fault(
            "a rebound peer was checked and then not followed, since its IKE SA was there already",
            1059,
            Setup { scheduler: Backup, filters: true, ..behind_nat },
            &[(NatRebind { addr: 0 }, 1111), (ReplaceBoth { addrs: [0, 0] }, 1677)],
        ),
        fault(
            "an address that was only announced got probes beside its checks",
            1076,
            Setup { scheduler: Backup, encap: false, filters: true, addresses: [2, 1], ..CALM },
            &[(HandAdd { host: 1, addr: 3, check: false }, 2260)],
        ),
        fault(
            "a request that came over another pair than it was made for looked like a NAT",
            1089,
            Setup { routability: Off, filters: true, addresses: [1, 2], loss: 2, reordering: 20, ..CALM },
            &[
                (ReplaceBoth { addrs: [1, 1] }, 1349),
                (Add { host: 0, addr: 0 }, 6577),
                (ReplaceBoth { addrs: [0, 1] }, 314),
            ],
        ),
        fault(
            "what could not be told for want of a way was not told when there was one",
            1090,
            Setup { scheduler: Packet, v6: true, ..both },
            &[
                (ReplaceBoth { addrs: [1, 1] }, 4712),
                (Replace { host: 1, addr: 0 }, 5346),
                (Remove { host: 1, addr: 0 }, 2427),
            ],
        ),
        fault(
            "a check that was refused kept the address from being told",
            1090,
            Setup { scheduler: Packet, v6: true, ..both },
            &[
                (ReplaceBoth { addrs: [1, 1] }, 4712),
                (Replace { host: 1, addr: 0 }, 5346),
                (Remove { host: 1, addr: 0 }, 2427),
                (HandUpdate { host: 0, old: Some(0), new: 2, check: true }, 782),
            ],
        ),
        fault(
            "an address that the peer had dropped for want of its family was not told again",
            1109,
            Setup { filters: true, v6: true, addresses: [1, 2], ..CALM },
            &[(Add { host: 0, addr: 0 }, 11)],
        ),
        fault(
            "a responder of version 1 that had moved by itself stayed where the initiator was not",
            1131,
            Setup {
                transport: true,
                scheduler: Redundant,
                encap: false,
                v6: true,
                addresses: [2, 2],
                ..version_1
            },
            &[(ReplaceBoth { addrs: [2, 1] }, 232)],
        ),
        fault(
            "a NAT that came after a rekeying was not noticed",
            1170,
            Setup { scheduler: Backup, routability: Off, addresses: [2, 2], ..version_1 },
            &[(Rekey { host: 0, child: false }, 1638), (Nat { on: true }, 23)],
        ),
        fault(
            "a new Child SA did not get the addresses of those before",
            1209,
            Setup { scheduler: Redundant, filters: true, addresses: [1, 2], ..CALM },
            &[(Down { host: 1, child: true }, 1966)],
        ),
        fault(
            "a check failed that had been answered, since the IKE SA changed its path meanwhile",
            1397,
            Setup { scheduler: Backup, loss: 14, ..CALM },
            &[(Replace { host: 1, addr: 1 }, 2297)],
        ),
        fault(
            "an announced address got a check right after a retransmission",
            6039,
            Setup {
                scheduler: Packet,
                routability: After,
                encap: false,
                private: true,
                addresses: [1, 2],
                loss: 10,
                reordering: 5,
                ..CALM
            },
            &[
                (Replay { datagrams: 2 }, 494),
                (Add { host: 0, addr: 2 }, 25),
                (Add { host: 1, addr: 1 }, 28),
                (Replace { host: 0, addr: 0 }, 23),
                (Nat { on: true }, 727),
                (HandAdd { host: 1, addr: 3, check: false }, 1528),
            ],
        ),
        fault(
            "the peer never heard of the end of a Child SA that ended while it could not be told",
            300_724,
            Setup { filters: true, ..version_1 },
            &[(ReplaceBoth { addrs: [2, 2] }, 9), (Down { host: 1, child: true }, 2681)],
        ),
        fault(
            "a Child SA that was asked for twice was made twice",
            300_467,
            Setup { routability: After, filters: true, addresses: [2, 1], ..CALM },
            &[(Down { host: 0, child: true }, 24), (Up, 18)],
        ),
        fault(
            "the only address of the peer stayed limited after a check that had come too late",
            100_681,
            Setup { scheduler: Redundant, private: true, addresses: [2, 1], ..CALM },
            &[
                (Remove { host: 0, addr: 1 }, 29),
                (ReplaceBoth { addrs: [2, 2] }, 4565),
                (ReplaceBoth { addrs: [0, 1] }, 1563),
            ],
        ),
        fault(
            "an address behind a NAT that once had no way to the peer was not told when there was one",
            101_050,
            Setup { scheduler: Redundant, routability: Off, private: true, addresses: [1, 2], ..CALM },
            &[
                (ReplaceBoth { addrs: [1, 1] }, 6537),
                (Add { host: 1, addr: 2 }, 8516),
                (Replace { host: 0, addr: 2 }, 2399),
                (Replace { host: 1, addr: 2 }, 7303),
            ],
        ),
        fault(
            "an address that an operator took away and added again stayed out of use",
            100_995,
            Setup { scheduler: Packet, encap: false, filters: true, v6: true, addresses: [2, 2], ..CALM },
            &[(HandRemove { host: 0, addr: 2, check: false }, 15), (Remove { host: 1, addr: 1 }, 2891)],
        ),
        fault(
            "an answer or a test counted as word from the initiator where the responder had moved to",
            100_168,
            Setup { transport: true, filters: true, addresses: [1, 2], ..version_1 },
            &[
                (Deafen { host: 1, addr: 0 }, 296),
                (ReplaceBoth { addrs: [0, 0] }, 200),
                (ReplaceBoth { addrs: [2, 1] }, 25),
            ],
        ),
        fault(
            "the responder did not hear from the initiator again after it had followed it once",
            302_185,
            Setup { transport: true, scheduler: Packet, filters: true, ..version_1 },
            &[(ReplaceBoth { addrs: [2, 2] }, 11_893), (ReplaceBoth { addrs: [2, 1] }, 20)],
        ),
        fault(
            "a Child SA that was rekeyed while there was no pair of addresses had no path",
            102_561,
            Setup { scheduler: Backup, routability: Off, filters: true, v6: true, addresses: [1, 2], ..CALM },
            &[
                (ReplaceBoth { addrs: [1, 1] }, 3654),
                (Replace { host: 0, addr: 2 }, 6913),
                (Rekey { host: 1, child: true }, 2639),
            ],
        ),
        fault(
            "an SA that the peer deleted since it was redundant was told as an end",
            102_209,
            Setup { scheduler: Backup, routability: Off, private: true, loss: 5, reordering: 5, ..CALM },
            &[(Rekey { host: 0, child: false }, 14), (Rekey { host: 1, child: false }, 2172)],
        ),
        fault(
            "an address that the peer had been at before a NAT came hid that there was one",
            301_917,
            Setup { scheduler: Backup, encap: false, addresses: [2, 2], loss: 14, ..CALM },
            &[
                (Garbage { datagrams: 5 }, 180),
                (ReplaceBoth { addrs: [2, 1] }, 1845),
                (Nat { on: true }, 25),
                (ReplaceBoth { addrs: [2, 0] }, 196),
                (Add { host: 0, addr: 0 }, 2646),
                (ReplaceBoth { addrs: [0, 2] }, 16),
            ],
        ),
        fault(
            "a redundant IKE SA told of addresses before it was deleted, and stayed",
            302_866,
            Setup {
                scheduler: Backup,
                routability: After,
                encap: false,
                private: true,
                addresses: [2, 1],
                ..CALM
            },
            &[
                (Traffic { host: 0, on: false }, 2391),
                (ReplaceBoth { addrs: [2, 2] }, 2),
                (Rekey { host: 1, child: false }, 1329),
                (Rekey { host: 0, child: false }, 562),
            ],
        ),
        fault(
            "a request waited for its next retransmission although the peer was heard again",
            103_140,
            Setup { transport: true, scheduler: Redundant, v6: true, ..CALM },
            &[
                (Replace { host: 0, addr: 1 }, 1521),
                (Add { host: 1, addr: 0 }, 1494),
                (Rekey { host: 0, child: false }, 639),
                (Rekey { host: 1, child: true }, 196),
                (Traffic { host: 1, on: false }, 7624),
                (ReplaceBoth { addrs: [1, 2] }, 884),
                (Replace { host: 1, addr: 2 }, 6898),
            ],
        ),
        fault(
            "the address in use was not told again to a peer that had dropped it for want of its family",
            101_421,
            Setup {
                scheduler: Redundant,
                routability: After,
                private: true,
                loss: 2,
                duplication: 10,
                ..CALM
            },
            &[
                (Add { host: 0, addr: 2 }, 2870),
                (Down { host: 0, child: false }, 11),
                (Traffic { host: 0, on: true }, 11_600),
                (Up, 78),
                (Remove { host: 1, addr: 0 }, 2487),
                (Add { host: 1, addr: 2 }, 223),
            ],
        ),
        fault(
            "a check of a supposed new mapping undid the move that had come meanwhile",
            505_387,
            Setup { transport: true, scheduler: Redundant, routability: Off, addresses: [1, 2], ..version_1 },
            &[
                (Add { host: 1, addr: 2 }, 270),
                (Add { host: 0, addr: 1 }, 178),
                (Deafen { host: 0, addr: 0 }, 1052),
                (Remove { host: 1, addr: 1 }, 2598),
                (Remove { host: 1, addr: 0 }, 827),
                (Replace { host: 0, addr: 1 }, 11_658),
            ],
        ),
        fault(
            "the answer to a rekeying was lost while both moved, and the peer knew only an SA that nobody spoke on",
            501_127,
            Setup {
                scheduler: Backup,
                encap: false,
                private: true,
                filters: true,
                addresses: [2, 2],
                loss: 10,
                reordering: 5,
                ..CALM
            },
            &[(Rekey { host: 1, child: false }, 24), (ReplaceBoth { addrs: [0, 1] }, 1450)],
        ),
        fault(
            "the answer to a rekeying was lost in a NAT that came",
            903_600,
            Setup {
                scheduler: Redundant,
                routability: After,
                private: true,
                filters: true,
                addresses: [1, 1],
                ..version_1
            },
            &[
                (Sleep { host: 1, seconds: 2 }, 0),
                (Rekey { host: 1, child: false }, 11),
                (Nat { on: true }, 15),
            ],
        ),
        fault(
            "an address that was to be told once more vanished meanwhile and stayed in the sets of both",
            902_282,
            Setup {
                transport: true,
                scheduler: Redundant,
                routability: After,
                encap: false,
                addresses: [2, 2],
                ..CALM
            },
            &[
                (Replace { host: 1, addr: 1 }, 1985),
                (Add { host: 1, addr: 0 }, 0),
                (Mute { host: 0, addr: 0 }, 181),
                (Replace { host: 0, addr: 2 }, 1627),
            ],
        ),
        fault(
            "a long request never reached a peer whose NAT had rebooted and who asks short ones only",
            501_780,
            Setup { scheduler: Redundant, ..behind_nat },
            &[
                (Rekey { host: 0, child: true }, 2602),
                (NatReboot, 113),
                (Rekey { host: 1, child: false }, 13),
                (Nat { on: true }, 1570),
            ],
        ),
        fault(
            "a failed check of one port of a NAT took another port of it away",
            400_802,
            Setup { routability: After, filters: true, loss: 10, duplication: 10, ..CALM },
            &[
                (Nat { on: true }, 5),
                (Replay { datagrams: 8 }, 314),
                (Heal, 1640),
                (Add { host: 1, addr: 1 }, 2051),
                (ForgeSource { host: 0, victim: 1, datagrams: 3 }, 1126),
                (Add { host: 0, addr: 1 }, 2914),
                (ReplaceBoth { addrs: [2, 1] }, 176),
            ],
        ),
        fault(
            "a check that was answered late over the pair in use, the only one that it went over, failed",
            606_641,
            Setup { scheduler: Redundant, filters: true, v6: true, addresses: [2, 2], ..version_1 },
            &[
                (ForgeSource { host: 1, victim: 0, datagrams: 5 }, 166),
                (Remove { host: 0, addr: 2 }, 1787),
                (Remove { host: 1, addr: 2 }, 1085),
            ],
        ),
        fault(
            "after a failed check in version 1 the IKE SA went back and its Child SA did not",
            1_202_687,
            Setup {
                routability: After,
                encap: false,
                filters: true,
                v6: true,
                addresses: [1, 2],
                ..version_1
            },
            &[
                (Deafen { host: 0, addr: 0 }, 1779),
                (Replace { host: 0, addr: 0 }, 2576),
                (Mtu { octets: 482 }, 2583),
            ],
        ),
        fault(
            "the DELETE of a Child SA came before the answer that had made it",
            903_439,
            Setup {
                scheduler: Redundant,
                encap: false,
                loss: 10,
                private: true,
                addresses: [2, 2],
                ..version_1
            },
            &[
                (Rekey { host: 1, child: true }, 4),
                (Add { host: 0, addr: 0 }, 257),
                (Rekey { host: 1, child: true }, 11),
                (Down { host: 0, child: true }, 26),
            ],
        ),
        fault(
            "the first packet on a Child SA came when it had been replaced, and it was sent on again",
            1_104_391,
            Setup { scheduler: Redundant, encap: false, addresses: [2, 2], reordering: 20, ..CALM },
            &[
                (Add { host: 1, addr: 0 }, 14),
                (Replace { host: 0, addr: 0 }, 1886),
                (Rekey { host: 1, child: true }, 29),
                (Traffic { host: 1, on: false }, 63),
                (Rekey { host: 1, child: true }, 6781),
            ],
        ),
        fault(
            "without a Child SA a check of the address in use was taken for one of a new mapping",
            1_103_204,
            Setup { scheduler: Packet, v6: true, addresses: [2, 2], ..version_1 },
            &[
                (Replace { host: 0, addr: 0 }, 862),
                (Jump { seconds: 5000 }, 8131),
                (Nat { on: true }, 2989),
                (ReplaceBoth { addrs: [1, 2] }, 2777),
            ],
        ),
        fault(
            "an address that an operator had named was not told again to a peer that had dropped it",
            607_957,
            Setup { routability: After, v6: true, addresses: [2, 2], ..CALM },
            &[
                (Replace { host: 0, addr: 0 }, 773),
                (ReplaceBoth { addrs: [2, 0] }, 4),
                (Add { host: 0, addr: 0 }, 138),
                (HandUpdate { host: 0, old: None, new: 2, check: false }, 2259),
                (ReplaceBoth { addrs: [1, 2] }, 201),
            ],
        ),
        fault(
            "without return routability an address that nobody had answered from got several requests at once",
            2_000_462,
            Setup { transport: true, routability: Off, encap: false, ..CALM },
            &[
                (HandAdd { host: 0, addr: 3, check: false }, 337),
                (Add { host: 1, addr: 1 }, 3),
                (Crash { host: 0 }, 2673),
            ],
        ),
        fault(
            "in transport mode there was no new Child SA where the ends had chosen other pairs for their IKE SA",
            601_239,
            Setup {
                transport: true,
                scheduler: Packet,
                routability: After,
                encap: false,
                filters: true,
                addresses: [2, 2],
                ..CALM
            },
            &[(Sleep { host: 0, seconds: 100 }, 724), (Jump { seconds: 5000 }, 20)],
        ),
        fault(
            "an address that a forger named counted as checked by an answer from where the peer had gone meanwhile",
            3_028_091,
            Setup { scheduler: Packet, filters: true, addresses: [1, 2], ..version_1 },
            &[
                (Add { host: 0, addr: 2 }, 11_501),
                (ForgeSource { host: 0, victim: 1, datagrams: 4 }, 167),
                (Replace { host: 1, addr: 2 }, 8),
                (Add { host: 1, addr: 2 }, 9957),
            ],
        ),
    ];
    all.extend(crossing::all());
    all.extend(translated::all());
    all
}
