//! Actions between two endpoints, many of them as no endpoint of ours would ask for them.

mod actions;
mod alternates;
mod bad_input;
mod later;
mod scope;
mod sending;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mobikex_common::addr::Scheduler;
use mobikex_common::sa::Mode;
use mobikex_common::spi::Spi;
use mobikex_common::wire::ike::{Header, Notify, NotifyType, Payload, ProtocolId};
use mobikex_common::wire::mobike_x::{
    ALL_IKE_SAS, IKE_SA_ALONE, IpParameter, Mip, Parameter, Reachability, SpiParameter,
};

use super::{Request, Scope, Wish};
use crate::config::{Child, Connection, MobikeX, StartAction, TsPattern};
use crate::ike::auth::{AuthenticatedPeer, SignedOctets, sign_psk, verify_psk};
use crate::ike::sa::State;
use crate::ike::sets::Check;
use crate::ike::testing::{ADDRS, Pair, config, ip, notice, verdicts};
use crate::ike::{Command, Event};

const SECOND: Duration = Duration::from_secs(1);
const UPDATE: NotifyType = NotifyType::UPDATE_SA_ADDRESSES;
const ADD: NotifyType = NotifyType::ADD_SA_ADDRESS;
const REMOVE: NotifyType = NotifyType::REMOVE_SA_ADDRESS;
const ADDITIONAL: NotifyType = NotifyType::ADDITIONAL_IP_ADDRESS;
const PARAMETER: NotifyType = NotifyType::UNACCEPTABLE_PARAMETER;
const ADDRESSES: NotifyType = NotifyType::UNACCEPTABLE_ADDRESSES;

fn outer(text: &str) -> IpParameter {
    IpParameter::outer(ip(text))
}

fn action(kind: NotifyType, ips: &[IpParameter], id: u16) -> Payload {
    let mut parameters: Vec<Parameter> = ips.iter().copied().map(Parameter::Ip).collect();
    parameters.push(Parameter::Id(id));
    notice(kind, &parameters)
}

fn check(ip: IpParameter) -> IpParameter {
    IpParameter { check: true, ..ip }
}

fn with(ip: IpParameter, mip: Mip) -> IpParameter {
    IpParameter { mip: Some(mip), ..ip }
}

fn selector(parameter: Parameter) -> Payload {
    notice(NotifyType::SELECTOR, &[parameter])
}

fn end_of_selector() -> Payload {
    notice(NotifyType::END_OF_SELECTOR, &[])
}

fn two_children(conn: &mut Connection) {
    conn.children[0].start_action = StartAction::Start;
    let second = Child { name: "more".into(), ..conn.children[0].clone() };
    conn.children.push(second);
}

/// Each end's host in transport mode; the second end permits a few addresses only.
fn transport(end: usize, conn: &mut Connection) {
    let ts = |text: &str| vec![TsPattern::Fixed(text.parse().unwrap())];
    let child = &mut conn.children[0];
    child.mode = Mode::Transport;
    (child.local_ts, child.remote_ts) = if end == 0 {
        (ts("192.0.2.1"), ts("198.51.100.1"))
    } else {
        (ts("198.51.100.1"), ts("192.0.2.0/28"))
    };
}

fn alternates(pair: &mut Pair) -> Vec<String> {
    pair.sa(1, |sa, ctx| sa.mobility.alternates.ranked(ctx.now).iter().map(ToString::to_string).collect())
}

fn handed_up(pair: &Pair) -> Vec<String> {
    let shown = pair.events[1].iter().filter(|e| matches!(e, Event::Alternates { .. }));
    shown.map(ToString::to_string).collect()
}

fn child_spi(pair: &mut Pair, end: usize) -> Spi {
    pair.sa(end, |sa, _| sa.children.iter().find(|c| c.is_live()).unwrap().spi_in)
}

/// Datagrams from the second end to an address.
fn sent_to(pair: &Pair, addr: &str) -> usize {
    pair.sent[1].iter().filter(|d| d.destination.ip() == ip(addr)).count()
}
