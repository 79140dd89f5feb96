//! Probes of the paths of an IKE SA by encrypted ESP echo, and the traffic that decides how often: what `path_table` asks
//! for goes out here, and what comes back goes in.

use std::time::Instant;

use mobikex_common::addr::Path;
use mobikex_common::sa::ChildSaId;
use mobikex_common::wire::echo::Echo;
use rand_core::Rng;

use super::child::ChildSa;
use super::ctx::Ctx;
use super::output::{Event, Output};
use super::path_rate::READING;
use super::path_table::Health;
use super::sa::IkeSa;
use super::sets::{self, Check};
use crate::config::ReturnRoutability;

impl IkeSa {
    /// The Child SA that carries probes: any that both sides have for certain.
    pub(super) fn carrier(&self) -> Option<&ChildSa> {
        self.children.iter().find(|c| c.outbound && c.is_live())
    }

    pub(super) fn send_probes(&mut self, ctx: &mut Ctx<'_>) {
        let Some(child) = self.carrier().map(|c| c.id) else { return };
        // Where the peer has not been shown to be, probes would come on top of the checks (M6 of the threats).
        let required = self.conn.return_routability == ReturnRoutability::Required;
        let checks = &self.mobility.checks;
        let may = |p: &Path| !required || checks.get(&p.remote) == Some(&Check::Passed);
        for probe in self.mobility.table.due(ctx.now, may, || ctx.rng.next_u64()) {
            let device = ctx.network.device(probe.path.local.ip());
            let echo = Echo {
                response: false,
                identifier: probe.identifier,
                sequence: probe.sequence,
                return_spi: None,
                data: probe.cookie.to_be_bytes().to_vec(),
            };
            let encap = sets::in_udp(&probe.path, self.encap, self.nat_t);
            ctx.out.push_back(Output::Echo { child, path: probe.path, device, encap, echo });
        }
    }

    /// Whether it matters what each path carries: there is traffic, and a choice.
    pub(super) fn reads_rates(&self) -> bool {
        let table = &self.mobility.table;
        let several = || table.iter().filter(|p| p.health == Health::Up).count() > 1;
        self.conn.paths.measure_rates && self.mobility.probes() && table.is_busy() && several()
    }

    /// Asks for what has gone over each path.
    pub(super) fn read_rates(&mut self, ctx: &mut Ctx<'_>) {
        if !self.reads_rates() || self.mobility.reading_at.is_some_and(|at| at > ctx.now) {
            return;
        }
        self.mobility.reading_at = Some(ctx.now + READING);
        let children: Vec<ChildSaId> =
            self.children.iter().filter(|c| c.outbound && c.is_live()).map(|c| c.id).collect();
        if !children.is_empty() {
            ctx.out.push_back(Output::CountPaths(children));
        }
    }

    /// The octets that have gone over each path so far, as asked for.
    pub(super) fn note_octets(&mut self, ctx: &mut Ctx<'_>, octets: &[(Path, u64)]) {
        if self.mobility.table.note_octets(octets, ctx.now) {
            self.unsettle(ctx);
            self.refresh(ctx);
        }
    }

    /// How many packets the SA that carries the probe has sent, and how many have come over the probed path. When there
    /// is a pause, the packet path tells of its end.
    pub(super) fn note_traffic(&mut self, ctx: &mut Ctx<'_>, path: &Path, packets: u64, packets_in: u64) {
        let was_busy = self.mobility.table.is_busy();
        self.mobility.table.note_traffic(path, packets, packets_in);
        if was_busy && !self.mobility.table.is_busy() {
            let children = self.children.iter().map(|c| c.id).collect();
            ctx.out.push_back(Output::WatchTraffic(children));
        }
    }

    /// The answer to a probe.
    pub(super) fn handle_echo(&mut self, ctx: &mut Ctx<'_>, echo: &Echo, at: Instant) {
        let Some(cookie) = echo.data.first_chunk().map(|octets| u64::from_be_bytes(*octets)) else { return };
        let changed = self.mobility.table.answer(echo.identifier, echo.sequence, cookie, at);
        if let Some(path) = changed {
            ctx.event(Event::PathUp { ike: self.name(), path });
            self.announce_again(ctx, path.local.ip());
            self.prefer_working_path(ctx);
            self.unsettle(ctx);
            self.refresh(ctx);
        }
    }

    /// A Child SA sends again after a pause.
    pub(super) fn traffic_begins(&mut self, ctx: &mut Ctx<'_>) {
        self.mobility.table.wake(ctx.now);
        self.mobility_timeouts(ctx);
    }
}
