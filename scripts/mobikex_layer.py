#!/usr/bin/env python3
"""The notifies of MOBIKE-X as a scapy layer, and the check of the published byte vectors with it.

    mobikex_layer.py --check FILE    rebuild every vector from its meaning, read every vector's octets, and compare;
                                     exit status 1 on any difference, 2 when scapy is missing
    mobikex_layer.py --write FILE    fill in the octets of the vectors from their meaning

Within scapy, `Notify(type="ADD_SA_ADDRESS", data=[Ip(addr="192.0.2.1", h=1), Id(id=7)])` builds a payload and
`Notify(octets)` takes one apart. The layer is written from the draft (section numbers in the comments) and from the
project's profile of it, and shares nothing with the Rust codecs, so that each can show the other wrong.
"""
import ipaddress
import json
import sys

try:
    from scapy.fields import (BitEnumField, BitField, ByteEnumField, ByteField, ConditionalField, FieldLenField,
                              FieldListField, IntField, IPField, MultipleTypeField, PacketListField, ShortEnumField,
                              ShortField, StrLenField)
    from scapy.layers.inet6 import IP6Field
    from scapy.packet import Packet, Raw
except ImportError:
    print("mobikex_layer.py: scapy is not installed for this Python", file=sys.stderr)
    sys.exit(2)

# 11.2.9, 11.3.7, RFC 4555 section 6, RFC 9611 section 8; the last two are the project's own.
NOTIFIES = {
    40: "UNACCEPTABLE_ADDRESSES", 41: "UNEXPECTED_NAT_DETECTED", 48: "TS_MAX_QUEUE",
    8192: "MOBIKE_UNSUPPORTED_VERSION", 8193: "DOES_NOT_FIT_SPD", 8194: "UNACCEPTABLE_PARAMETER",
    8195: "UNEXPECTED_PAYLOAD_AFTER_SELECTOR", 8196: "UNMATCHED_SELECTOR_SET",
    16396: "MOBIKE_SUPPORTED", 16397: "ADDITIONAL_IP4_ADDRESS", 16398: "ADDITIONAL_IP_ADDRESS",
    16399: "NO_ADDITIONAL_ADDRESSES", 16400: "UPDATE_SA_ADDRESSES", 16401: "COOKIE2", 16402: "NO_NATS_ALLOWED",
    16444: "SA_RESOURCE_INFO",
    40961: "SELECTOR", 40962: "END_OF_SELECTOR", 40963: "ADD_SA_ADDRESS", 40964: "REMOVE_SA_ADDRESS",
    40965: "CLOSING_SA", 40966: "ECHO_SUPPORTED",
}
NUMBERS = {name: number for number, name in NOTIFIES.items()}
KINDS = {1: "VERSION", 2: "SPI", 3: "IP", 4: "IPSEC_MODE", 5: "IPSEC_PROTO", 6: "SELECTOR_SPECIFIC_VALUE", 7: "ID"}
MAX_PARAMETERS = 16
NOTIFY_PAYLOAD = 41


class Parameter(Packet):
    """What parameters have in common: a length that is a multiple of four octets, and no payload."""

    def post_build(self, pkt, pay):
        return pkt + bytes(-len(pkt) % 4) + pay

    def extract_padding(self, s):
        return b"", s


class Version(Parameter):  # 11.4.1
    name = "VERSION"
    fields_desc = [
        ByteEnumField("type", 1, KINDS),
        FieldLenField("nbr", None, fmt="B", count_of="versions"),
        FieldListField("versions", [], ByteEnumField("", 0, {1: "MOBIKE", 2: "MOBIKE-X", 255: "NONE"}),
                       count_from=lambda p: p.nbr),
        StrLenField("padding", b"", length_from=lambda p: -(2 + p.nbr) % 4),
    ]


class Spi(Parameter):  # 11.4.2
    name = "SPI"
    fields_desc = [
        ByteEnumField("type", 2, KINDS),
        FieldLenField("size", None, fmt="B", length_of="spi"),
        ShortField("reserved", 0),
        StrLenField("spi", b"", length_from=lambda p: p.size),
        StrLenField("padding", b"", length_from=lambda p: -p.size % 4),
    ]


def multihoming(field):
    return ConditionalField(field, lambda p: p.m)


class Ip(Parameter):  # 11.4.3 and 11.4.4
    name = "IP"
    fields_desc = [
        ByteEnumField("type", 3, KINDS),
        BitField("m", 0, 1), BitEnumField("v", 0, 2, {0: "IPv4", 1: "IPv6"}), BitField("c", 0, 1),
        BitField("o", 0, 1), BitField("n", 0, 1), BitField("h", 0, 1), BitField("i", 0, 1),
        ShortField("reserved", 0),
        multihoming(ByteField("preference", 0)),
        multihoming(ByteEnumField("class_", 0, {0: "NONE", 1: "HoA", 2: "CoA"})),
        multihoming(BitEnumField("r", 0, 2, {0: "NO_INFO", 1: "REACHABLE", 2: "UNREACHABLE"})),
        multihoming(BitField("reserved_mip", 0, 14)),
        multihoming(IntField("start", 0)),
        multihoming(IntField("life", 0)),
        MultipleTypeField([(IP6Field("addr", "::"), lambda p: p.v == 1)], IPField("addr", "0.0.0.0")),
    ]


def short(number, field):
    """The parameters of one octet of value: 11.4.5, 11.4.6, 11.4.7."""
    return [ByteEnumField("type", number, KINDS), ByteField(field, 0), ShortField("reserved", 0)]


class Mode(Parameter):
    name = "IPSEC_MODE"
    fields_desc = short(4, "mode")


class Proto(Parameter):
    name = "IPSEC_PROTO"
    fields_desc = short(5, "proto")


class Special(Parameter):
    name = "SELECTOR_SPECIFIC_VALUE"
    fields_desc = short(6, "value")


class Id(Parameter):  # 11.4.8
    name = "ID"
    fields_desc = [ByteEnumField("type", 7, KINDS), ByteField("reserved", 0), ShortField("id", 0)]


CLASSES = {1: Version, 2: Spi, 3: Ip, 4: Mode, 5: Proto, 6: Special, 7: Id}


class Notify(Packet):  # 11.1, RFC 7296 3.10: a whole payload with its generic header
    name = "IKEv2 Notify (MOBIKE-X)"
    fields_desc = [
        ByteField("next_payload", 0), ByteField("flags", 0), ShortField("length", None),
        ByteField("protocol", 0), ByteField("spi_size", 0), ShortEnumField("type", 0, NOTIFIES),
        PacketListField("data", [], next_cls_cb=lambda pkt, lst, cur, rest: CLASSES.get(rest[0], Raw),
                        length_from=lambda p: p.length - 8),
    ]

    def post_build(self, pkt, pay):
        if self.length is None:
            pkt = pkt[:2] + len(pkt).to_bytes(2, "big") + pkt[4:]
        return pkt + pay


# ---- meaning to octets ---------------------------------------------------------------------------------------------

REACHABILITY = ["no info", "reachable", "unreachable"]


def parameter(meaning):
    """The packet that a parameter of a vector describes."""
    (kind, value), *rest = meaning.items()
    rest = dict(rest)
    if kind == "version":
        return Version(versions=value)
    if kind == "spi":
        return Spi(spi=bytes.fromhex(value))
    if kind == "ip":
        bits = {bit.lower(): 1 for bit in rest.get("bits", "")}
        mip = rest.get("mip")
        if mip:
            bits.update(m=1, preference=mip["preference"], class_=mip["class"],
                        r=REACHABILITY.index(mip["reachability"]), start=mip["start"], life=mip["life"])
        return Ip(v=int(":" in value), addr=value, **bits)
    return {"mode": lambda: Mode(mode=value), "proto": lambda: Proto(proto=value),
            "special": lambda: Special(value=value), "id": lambda: Id(id=value)}[kind]()


def encode(meaning):
    """Notify data. RFC 4555 (section 4.2) puts bare addresses, octets and the NO_NATS_ALLOWED structure there."""
    if "address" in meaning:
        return ipaddress.ip_address(meaning["address"]).packed
    if "octets" in meaning:
        return bytes.fromhex(meaning["octets"])
    if "source" in meaning:
        ends = [meaning["source"], meaning["destination"]]
        return (b"".join(ipaddress.ip_address(addr).packed for addr, _ in ends)
                + b"".join(port.to_bytes(2, "big") for _, port in ends))
    return b"".join(bytes(parameter(p)) for p in meaning["parameters"])


def payload(notify, data, next_payload=0):
    return bytes(Notify(next_payload=next_payload, type=NUMBERS[notify], data=[Raw(data)] if data else []))


def chain(notifies):
    last = len(notifies) - 1
    return b"".join(payload(n["notify"], encode(n["meaning"]), 0 if at == last else NOTIFY_PAYLOAD)
                    for at, n in enumerate(notifies))


# ---- octets to meaning ---------------------------------------------------------------------------------------------

class Fault(Exception):
    """What is wrong with a parameter, and where it starts."""

    def __init__(self, kind, offset, number=None):
        super().__init__(f"{kind} at {offset}")
        self.kind, self.offset, self.id = kind, offset, number


def size(rest, offset):
    """The octets of the parameter in front, by the figures of 11.4."""
    if len(rest) < 4:
        raise Fault("truncated", offset)
    kind, second = rest[0], rest[1]
    if kind not in CLASSES:
        raise Fault("unknown type", offset)
    if kind == 3:
        if second >> 5 & 3 > 1:
            raise Fault("ip version", offset)
        need = 4 + (12 if second & 0x80 else 0) + (16 if second & 0x20 else 4)
    else:
        need = {1: 2 + second, 2: 4 + second}.get(kind, 4)
        need += -need % 4
    if need > len(rest):
        raise Fault("truncated", offset)
    return need


def meaning_of(packet, offset):
    if isinstance(packet, Version):
        if packet.nbr == 0:
            raise Fault("no versions", offset)
        if any(packet.padding):
            raise Fault("padding", offset)
        return {"version": packet.versions}
    if isinstance(packet, Spi):
        if packet.size not in (4, 8, 16):
            raise Fault("spi size", offset)
        return {"spi": packet.spi.hex()}
    if isinstance(packet, Ip):
        out = {"ip": packet.addr, "bits": "".join(bit.upper() for bit in "conhi" if packet.getfieldval(bit))}
        if packet.m:
            out["mip"] = {"preference": packet.preference, "class": packet.class_,
                          "reachability": REACHABILITY[packet.r % 3], "start": packet.start, "life": packet.life}
        return out
    field = {Mode: "mode", Proto: "proto", Special: "value", Id: "id"}[type(packet)]
    return {{"value": "special"}.get(field, field): packet.getfieldval(field)}


def decode(data):
    """The parameters of notify data; raises Fault with the notify's ID as far as it can be found."""
    out, offset = [], 0
    try:
        while offset < len(data):
            if len(out) == MAX_PARAMETERS:
                raise Fault("too many", offset)
            need = size(data[offset:], offset)
            out.append(meaning_of(CLASSES[data[offset]](data[offset:offset + need]), offset))
            offset += need
    except Fault as fault:
        fault.id = find_id(data)
        raise
    return out


def find_id(data):
    """Lengths alone lead from one parameter to the next, also over one that is wrong inside."""
    try:
        for _ in range(MAX_PARAMETERS):
            need = size(data, 0)
            if data[0] == 7:
                return Id(data[:need]).id
            data = data[need:]
    except Fault:
        pass
    return None


# ---- the vectors ---------------------------------------------------------------------------------------------------

def check(vectors):
    """Everything that differs, as lines of text."""
    wrong = []

    def same(name, what, expected, found):
        if expected != found:
            wrong.append(f"{name}: {what} is {found!r}, the vector says {expected!r}")

    for v in vectors["notifies"]:
        data = encode(v["meaning"])
        same(v["name"], "type", v["type"], NUMBERS.get(v["notify"]))
        same(v["name"], "data", v["data"], data.hex())
        same(v["name"], "payload", v["payload"], payload(v["notify"], data).hex())
        if "parameters" in v["meaning"]:
            try:
                same(v["name"], "meaning", v["meaning"]["parameters"], decode(bytes.fromhex(v["data"])))
            except Fault as fault:
                wrong.append(f"{v['name']}: {fault}")
            again = Notify(bytes.fromhex(v["payload"]))
            same(v["name"], "payload taken apart and rebuilt", v["payload"], bytes(again).hex())
    for v in vectors["tolerated"]:
        found = decode(bytes.fromhex(v["data"]))
        same(v["name"], "meaning", v["meaning"]["parameters"], found)
        same(v["name"], "canonical", v["canonical"], encode(v["meaning"]).hex())
    for v in vectors["malformed"]:
        try:
            wrong.append(f"{v['name']}: reads as {decode(bytes.fromhex(v['data']))!r}")
        except Fault as fault:
            same(v["name"], "fault", (v["error"], v["offset"], v["id"]), (fault.kind, fault.offset, fault.id))
    for v in vectors["messages"]:
        same(v["name"], "chain", v["chain"], chain(v["notifies"]).hex())
    return wrong


def write(vectors):
    for v in vectors["notifies"]:
        data = encode(v["meaning"])
        v.update(type=NUMBERS[v["notify"]], data=data.hex(), payload=payload(v["notify"], data).hex())
    for v in vectors["tolerated"]:
        v["canonical"] = encode(v["meaning"]).hex()
    for v in vectors["messages"]:
        v["chain"] = chain(v["notifies"]).hex()


def text(vectors):
    """JSON with one line for each member of a vector."""
    def one(vector):
        return "    {\n" + ",\n".join(f"      {json.dumps(k)}: {json.dumps(v)}" for k, v in vector.items()) + "\n    }"

    lists = [f"  {json.dumps(key)}: [\n" + ",\n".join(map(one, value)) + "\n  ]"
             for key, value in vectors.items() if isinstance(value, list)]
    return '{\n  "about": ' + json.dumps(vectors["about"]) + ",\n" + ",\n".join(lists) + "\n}\n"


def main(arguments):
    if len(arguments) != 2 or arguments[0] not in ("--check", "--write"):
        print(__doc__, file=sys.stderr)
        return 64
    mode, path = arguments
    with open(path, encoding="utf-8") as file:
        vectors = json.load(file)
    if mode == "--write":
        write(vectors)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text(vectors))
        return 0
    wrong = check(vectors)
    for line in wrong:
        print(line)
    count = sum(len(value) for value in vectors.values() if isinstance(value, list))
    print(f"{count} vectors, {len(wrong)} differences")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
