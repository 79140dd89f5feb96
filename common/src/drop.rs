//! Why a packet was dropped: one list makes the enum, the counter index and the text.

use serde::Serialize;

macro_rules! drop_reasons {
    ($( $variant:ident, $name:literal, $text:literal; )*) => {
        /// Why the packet path dropped a packet.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u8)]
        pub enum DropReason {
            $( #[doc = $text] $variant, )*
        }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [Self] = &[$( Self::$variant, )*];

            /// Stable name for counters and `--json`.
            pub fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            /// One sentence for people.
            pub fn text(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }
        }
    };
}

drop_reasons! {
    OutNotIp, "out_not_ip", "A packet from the TUN device is not valid IPv4 or IPv6.";
    OutBadOffload, "out_bad_offload", "A packet from the TUN device does not fit the offload header before it.";
    OutNoPolicy, "out_no_policy", "No policy covers a packet from the TUN device.";
    OutNoSa, "out_no_sa", "A policy covers the packet but its SA is not up yet.";
    OutTooBig, "out_too_big", "The packet does not fit the path MTU and must not be fragmented; the sender was told.";
    OutFragment, "out_fragment", "A fragment cannot be protected in transport mode.";
    OutHeaders, "out_headers", "IPv4 options or IPv6 extension headers that transport mode would have to leave outside ESP.";
    OutSequenceExhausted, "out_sequence_exhausted", "The SA has used all its sequence numbers.";
    OutHardLimit, "out_hard_limit", "The SA has reached its volume limit.";
    OutNoPath, "out_no_path", "The SA has no usable pair of outer addresses.";
    OutNotRoutable, "out_not_routable", "The peer's address is not proven to be reachable and has had its share until more comes from it.";
    OutSend, "out_send", "The system refused to send the packet.";
    InTooShort, "in_too_short", "An ESP packet is shorter than its headers.";
    InNoSa, "in_no_sa", "No SA has the SPI of an ESP packet.";
    InReplayOld, "in_replay_old", "The sequence number lies before the replay window.";
    InReplayDuplicate, "in_replay_duplicate", "The sequence number was received before.";
    InAuthFailed, "in_auth_failed", "The integrity check value is wrong.";
    InBadPadding, "in_bad_padding", "Authentic, but the ESP padding is malformed.";
    InBadNextHeader, "in_bad_next_header", "Authentic, but the next header does not fit the SA's mode.";
    InDummy, "in_dummy", "A dummy packet (next header 59), dropped as it should be.";
    InBadInner, "in_bad_inner", "Authentic, but the inner packet is not valid IP.";
    InSelectorMismatch, "in_selector_mismatch", "Authentic, but the inner packet is outside the SA's traffic selectors.";
    InBadEcn, "in_bad_ecn", "Congestion was marked on the outer header of a packet that is not ECN-capable.";
    InHardLimit, "in_hard_limit", "The SA has reached its volume limit.";
    InBadEcho, "in_bad_echo", "Authentic, but not an ESP echo as we know it.";
    InEchoLimit, "in_echo_limit", "More ESP echoes in a second than a worker answers or reports.";
    InHandoverFull, "in_handover_full", "The queue to the worker that owns the SA is full.";
    InTunWrite, "in_tun_write", "The TUN device refused the packet.";
    InSourceMismatch, "in_source_mismatch", "A transport-mode packet came from an address outside the SA's set.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_indexed_by_the_enum() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        let names: std::collections::HashSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
