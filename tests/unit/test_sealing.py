"""The seal's filter, carried out step by step for both processors: what it lets through and what it refuses."""

import struct

import pytest

from infra.sealing import ALLOW, EQUAL, LOAD, MACHINES, REFUSE, RETURN, X32, Machine, program

BOTH = pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)


def verdict(machine: Machine, number: int, *, fifth: int = 0, audit: int | None = None) -> int:
    """What the kernel would do with a call, by its rules for such programs."""
    data = struct.pack("=iIQ6Q", number, machine.audit if audit is None else audit, 0, 0, 0, 0, 0, fifth, 0)
    steps = list(struct.iter_unpack("=HBBI", program(machine)))
    at, loaded = 0, 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == RETURN:
            return operand
        if code == LOAD:
            (loaded,) = struct.unpack_from("=I", data, operand)
        else:
            at += if_true if (loaded == operand if code == EQUAL else loaded >= operand) else if_false


@BOTH
def test_calls_that_open_a_socket_or_reach_an_address_are_refused(machine: Machine) -> None:
    assert {verdict(machine, number) for number in machine.refused} == {REFUSE}


@BOTH
def test_other_calls_pass(machine: Machine) -> None:
    others = set(range(500)) - set(machine.refused)
    assert {verdict(machine, number) for number in others} == {ALLOW}


@BOTH
@pytest.mark.parametrize("address", [1, 0x7F00_0000_0000, 2**63])
def test_sending_on_an_open_connection_passes_and_sending_to_an_address_does_not(
    machine: Machine, address: int
) -> None:
    assert verdict(machine, machine.sendto) == ALLOW
    assert verdict(machine, machine.sendto, fifth=address) == REFUSE


@BOTH
def test_no_call_passes_under_the_numbers_of_another_processor_or_of_x32(machine: Machine) -> None:
    i386 = 0x40000003
    assert verdict(machine, 1, audit=i386) == REFUSE
    assert verdict(machine, X32 + 1) == REFUSE
