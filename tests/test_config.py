"""xl configurations and what a user may call a guest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.elf_builder import Elf
from xentui import config
from xentui.config import ConfigError, GuestSpec, built_in_guests, parse_xl_config, resolve_guest
from xentui.engine.xen.elf import load_image
from xentui.xl_grammar import Value, parse_settings


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in a folder of its own, with a kernel and a ramdisk in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "kernel").write_bytes(Elf().build())
    (folder / "initrd").write_bytes(b"ramdisk")
    return folder


def parsed(text: str) -> dict[str, Value]:
    """The settings of a text; of several of one name, the last."""
    return {setting.name: setting.value for setting in parse_settings("t.cfg", text.encode())}


def guest(text: str, base: str = 'name="g"\nkernel="kernel"\n') -> GuestSpec:
    """The guest that a configuration makes."""
    Path("guest.cfg").write_text(base + text)
    return parse_xl_config("guest.cfg")


def refusal(make: Callable[[], object]) -> str:
    """The one line by which something is refused."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a="x"', {"a": "x"}),
        ("a = 'x' # c", {"a": "x"}),
        ("# only a comment", {}),
        ("\n\n;;\n", {}),
        ("a=1;b=0x2f\nc=017", {"a": "1", "b": "0x2f", "c": "017"}),
        ('a="say \\"hi\\"\\n"', {"a": 'say "hi"\n'}),
        (r"a='\x41\102\\'", {"a": "AB\\"}),
        ('a="it\'s"', {"a": "it's"}),
        ("a=[]", {"a": []}),
        ("a=[ 'x', \"y\", 3 ]", {"a": ["x", "y", "3"]}),
        ("a=[\n 'x',\n\n 'y', # why\n]", {"a": ["x", "y"]}),
        ("a=[ 'x'\n, 'y' ]", {"a": ["x", "y"]}),
        ("a=[[1,2],[['x']],]", {"a": [["1", "2"], [["x"]]]}),
        ("a='x'\na='y'", {"a": "y"}),
        ("a='x'\na+='y'", {"a": "xy"}),
        ("a=[1]\na += [2]", {"a": ["1", "2"]}),
        ("a+='x'", {"a": "x"}),
        ("a='x'\r\nb=2\r\n", {"a": "x", "b": "2"}),
        ("a_1='ä # no comment'", {"a_1": "ä # no comment"}),
    ],
)
def test_the_grammar(text: str, expected: dict[str, Value]) -> None:
    assert parsed(text) == expected


def test_settings_know_where_they_are() -> None:
    places = [(s.name, s.line, s.column) for s in parse_settings("t", b"a=1; b=2\n\n  c=[\n1]\nd=4")]
    assert places == [("a", 1, 1), ("b", 1, 6), ("c", 3, 3), ("d", 5, 1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", '1:2: syntax error: expected "=" after a, not the end of the file'),
        ("x=1\na b", '2:3: syntax error: expected "=" after a, not b'),
        ("a=", "1:3: syntax error: expected a value, not the end of the file"),
        ("a=\nb=1", "1:3: syntax error: expected a value, not the end of the line"),
        ("a=b", "1:3: syntax error: expected a value, not b; put strings into quotes"),
        ("a=1 2", "1:5: syntax error: expected the end of the line, not 2"),
        ("a='x", "1:3: syntax error: the string that starts here is not closed on its line"),
        ("a='x\n'", "1:3: syntax error: the string that starts here is not closed on its line"),
        ("a=[1", "1:3: syntax error: the list that starts here is not closed; add a ]"),
        ("a=[\n1\n2]", '3:1: syntax error: expected "," or "]" in a list, not 2'),
        ("a=[,]", "1:4: syntax error: expected a value, not ,"),
        ("a=]", "1:3: syntax error: expected a value, not ]"),
        ("Name='x'", '1:1: syntax error: "N" cannot begin a name: names are lower case'),
        ("= 3", "1:1: syntax error: expected a setting's name, not ="),
        ("import os.path", '1:8: syntax error: expected "=" after import, not os'),
        ("a=(1)", '1:3: syntax error: unexpected "(": a configuration is no Python'),
        ("a=-1", '1:3: syntax error: unexpected "-": a configuration is no Python'),
        ("a=1\n\n  b=$c", '3:5: syntax error: unexpected "$"; put strings into quotes'),
        ("a='\\q'", "1:4: syntax error: \\q is no escape"),
        ("a='ok\\xzz'", "1:6: syntax error: \\x is no escape"),
        ("a='x'\na+=[1]", "2:2: syntax error: += cannot add a list to a string"),
        ("a=" + "[" * 17, "1:19: syntax error: more than 16 lists within each other"),
        ("a=\x1b", '1:3: syntax error: unexpected "\\x1b"'),
        ("a=\x00", '1:3: syntax error: unexpected "\\x00"'),
    ],
)
def test_syntax_errors_tell_line_and_column(text: str, expected: str) -> None:
    message = refusal(lambda: parsed(text))
    assert message.startswith("t.cfg:")
    assert expected in message


def test_what_is_not_utf_8_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match=r"t:2:4: not UTF-8 text"):
        parse_settings("t", b"a=1\nb='\xff'")


@settings(max_examples=800, deadline=2000)
@given(st.text(alphabet="ab01x='\"[],;#+\\ \n\r\t$Zé\0", max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parsed(text)
    except ConfigError as error:
        assert str(error).isprintable()


@settings(deadline=2000)
@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True), st.text(max_size=20), max_size=5))
def test_quoted_strings_come_back(values: dict[str, str]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

    assert parsed("\n".join(f"{name} = {quoted(value)}" for name, value in values.items())) == values


def test_long_configurations_take_no_long_time() -> None:
    text = "".join(f"key_{i} = [ 'a', 'b' ]\n" for i in range(9000))
    assert len(text) <= config.MAX_CONFIG and len(parsed(text)) == 9000


def test_a_whole_guest() -> None:
    text = """
        ramdisk = "initrd"
        memory = 512; maxmem = 0x400
        vcpus = 2
        cpu_weight = 512
        cap = 40
        cmdline = "console=hvc0 quiet"
        type = "pv"
        on_poweroff = "preserve"
        on_reboot = 'destroy'
        on_crash = "coredump-destroy"
        on_watchdog = "restart"
        on_soft_reset = "rename-restart"
    """
    assert guest(text) == GuestSpec(
        name="g",
        kernel=Path("kernel"),
        ramdisk=Path("initrd"),
        memory=512,
        maxmem=1024,
        vcpus=2,
        cpu_weight=512,
        cap=40,
        cmdline="console=hvc0 quiet",
        on_poweroff="preserve",
        on_reboot="destroy",
        on_crash="coredump-destroy",
        on_watchdog="restart",
        on_soft_reset="rename-restart",
        source=Path("guest.cfg"),
    )


def test_what_xl_takes_when_nothing_is_said() -> None:
    spec = guest("")
    assert (spec.memory, spec.maxmem, spec.vcpus, spec.cmdline, spec.ramdisk) == (32, 32, 1, "", None)
    assert (spec.cpu_weight, spec.cap) == (256, 0)
    assert (spec.on_poweroff, spec.on_reboot, spec.on_crash) == ("destroy", "restart", "destroy")
    assert (spec.on_watchdog, spec.on_soft_reset) == ("destroy", "soft-reset")
    assert spec.warnings == []


@pytest.mark.parametrize(
    ("text", "cmdline"),
    [
        ('extra="quiet"', "quiet"),
        ('root="/dev/xvda1"', "root=/dev/xvda1"),
        ('extra="quiet"\nroot="/dev/xvda1"', "root=/dev/xvda1 quiet"),
        ('extra="a"\nextra+=" b"', "a b"),
    ],
)
def test_root_and_extra(text: str, cmdline: str) -> None:
    spec = guest(text)
    assert (spec.cmdline, spec.warnings) == (cmdline, [])


def test_cmdline_overrides_root_and_extra() -> None:
    spec = guest('extra="a"\nroot="b"\ncmdline="c"')
    assert spec.cmdline == "c"
    assert spec.warnings == [
        "guest.cfg:4:1: root is ignored in favour of cmdline",
        "guest.cfg:3:1: extra is ignored in favour of cmdline",
    ]


def test_keys_without_effect_are_named() -> None:
    spec = guest("disk = [ 'phy:/dev/sda,xvda,w' ]\nvif=['']\nbuilder='generic'\nmemory=64")
    assert spec.warnings == [
        "guest.cfg:5:1: builder is deprecated in xl; use type",
        "guest.cfg:3:1: disk is not supported: ignored",
        "guest.cfg:4:1: vif is not supported: ignored",
    ]
    assert spec.memory == 64


def test_maxmem_alone_is_the_memory() -> None:
    assert (guest("maxmem=128").memory, guest('memory="0100"').memory) == (128, 64)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("memory='lots'", 'guest.cfg:3:1: memory = "lots" is not a number; write it as 512 or 0x200'),
        ("memory=09", 'memory = "09" is not a number'),
        ("memory=0", "memory = 0 is out of range; use 1 to 65536"),
        ("memory='-5'", "memory = -5 is out of range"),
        ("memory=99999999999999999999", "is out of range"),
        ("memory=" + "9" * 5000, "is not a number"),
        ("memory=[512]", "memory is a list but should be a single value; take the brackets away"),
        ("memory=512\nmaxmem=256", "guest.cfg:4:1: maxmem = 256 is less than memory = 512; raise it"),
        ("vcpus=33", "vcpus = 33 is out of range; use 1 to 32"),
        ("vcpus=0", "vcpus = 0 is out of range"),
        ("cpu_weight=0", "cpu_weight = 0 is out of range; use 1 to 65535"),
        ("cap=401", "cap = 401 is out of range; use 0 to 400"),
        ("cpus='4'", "cpus: 4 are no processors that a machine may have: 0 to 3"),
        ("cpus=['0', ['1']]", "cpus has a list in a list"),
        ("cpus='x'", "cpus: 'x' is no list of processors"),
        ("type='hvm'", 'type = "hvm" needs hardware virtualization, which is not emulated; use type = "pv"'),
        ("type='pvh'", 'type = "pvh" needs hardware virtualization'),
        ("type='xyz'", 'type = "xyz" is no type of domain'),
        ("builder='hvm'", 'builder = "hvm" makes no PV domain'),
        ("on_crash='explode'", 'on_crash = "explode" is no action; use one of destroy, restart, rename-restart,'),
        ("ramdisk='nowhere'", "guest.cfg:3:1: ramdisk: no such file: nowhere; check the path"),
        ("ramdisk='/no/where'", "ramdisk: no such file: /no/where; check the path"),
        ("ramdisk='a\\000b'", "ramdisk has a NUL character in its path"),
        ("kernel='missing'", "guest.cfg:3:1: kernel: no such file: missing"),
        ("name=''", "guest.cfg:3:1: name is not set"),
        ("name='a/b'", "name = 'a/b' has characters that no domain's name may have"),
        ("name='a\\nb'", "name = 'a\\nb' has characters"),
    ],
)
def test_bad_values_are_refused_where_they_stand(text: str, expected: str) -> None:
    assert expected in refusal(lambda: guest(text))


def test_what_a_configuration_must_have() -> None:
    assert "guest.cfg: name is not set; add a line" in refusal(lambda: guest("kernel='kernel'", base=""))
    assert "guest.cfg: kernel is not set; add a line" in refusal(lambda: guest("name='g'", base=""))
    with_bootloader = refusal(lambda: guest("name='g'\nbootloader='pygrub'", base=""))
    assert "guest.cfg:2:1: kernel is not set (a bootloader is not run)" in with_bootloader


def test_files_beside_the_configuration_are_found_and_told_of(working_folder: Path) -> None:
    beside = working_folder.parent / "elsewhere"
    beside.mkdir()
    (beside / "vmlinuz").write_bytes(b"k")
    (beside / "initrd").write_bytes(b"r")
    (beside / "g.cfg").write_text('name="g"\nkernel="vmlinuz"\nramdisk="initrd"')
    spec = parse_xl_config("../elsewhere/g.cfg")
    assert spec.kernel == Path("../elsewhere/vmlinuz")
    # as in xl, the working folder comes first
    assert spec.ramdisk == Path("initrd")
    assert spec.warnings == [
        "../elsewhere/g.cfg:2:1: kernel = vmlinuz is not in the working folder: ../elsewhere/vmlinuz is used"
    ]


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (lambda path: None, "no such file; check the path"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_text(""), "is empty; give at least name, kernel and memory"),
        (lambda path: path.write_text(" \n"), "is empty"),
        (lambda path: os.mkfifo(path), "is no regular file"),
        (lambda path: path.write_bytes(Elf().build()), ":1:73: not UTF-8 text; is this a configuration?"),
        (lambda path: path.write_bytes(b"#" * (1 << 20)), "more than 256 KiB"),
    ],
)
def test_files_that_are_no_configuration(prepare: Callable[[Path], object], expected: str) -> None:
    prepare(Path("bad.cfg"))
    message = refusal(lambda: parse_xl_config("bad.cfg"))
    assert message.startswith("bad.cfg:") and expected in message


def test_built_in_guests_are_kernels() -> None:
    names = built_in_guests()
    assert {"hello32", "hello64"} <= set(names)
    for name in names:
        spec = resolve_guest(name)
        assert spec.builtin and spec.name == name
        assert load_image(spec.kernel).width == int(name[-2:])


def test_the_bare_name_takes_32() -> None:
    assert resolve_guest("hello") == resolve_guest("hello32")


def test_a_file_named_like_a_guest_needs_its_path(working_folder: Path) -> None:
    (working_folder / "hello32").write_bytes(Elf().build())
    assert resolve_guest("hello32").builtin
    spec = resolve_guest("./hello32")
    assert (spec.builtin, spec.kernel) == (False, Path("hello32"))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-9-amd64"),
        ("gnumach-1.8-xen-486.gz", "gnumach-1.8-xen-486"),
        (".gz", "guest"),
    ],
)
def test_a_kernel_by_its_path(working_folder: Path, file: str, name: str) -> None:
    path = working_folder / file
    path.write_bytes(Elf().build())
    assert resolve_guest(str(path)) == GuestSpec(name, path)


@pytest.mark.parametrize("file", ["guest.cfg", "guest", "guest.hvm"])
def test_a_configuration_by_name_or_content(working_folder: Path, file: str) -> None:
    (working_folder / file).write_text('# my guest\n\n; name = "mine"\nkernel = "kernel"\nname="mine"\n')
    assert resolve_guest(file).name == "mine"


def test_a_text_that_is_no_configuration_is_left_to_the_kernel_reader(working_folder: Path) -> None:
    (working_folder / "notes").write_text("Dear diary,\nname = 'x'\n")
    assert resolve_guest("notes").kernel == Path("notes")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (
            "helo64",
            "helo64: unknown guest; did you mean hello64? give a kernel, a configuration (*.cfg), or a built-in",
        ),
        ("zzzz", "zzzz: unknown guest; give a kernel, a configuration (*.cfg), or a built-in guest: "),
        ("hello16", "unknown guest; did you mean hello"),
        ("nowhere/kernel", "nowhere/kernel: no such file; check the path, or use a built-in guest: "),
        ("nowhere.cfg", "nowhere.cfg: no such file"),
        (".", ".: is a directory; give a kernel or a configuration (*.cfg) in it"),
        ("", "'': no name of a guest"),
        ("a\0b", "'a\\x00b': no name of a guest"),
        ("x" * 5000, "unknown guest"),
        ("\x1b[2J", "\\x1b[2J: unknown guest"),
    ],
)
def test_what_is_no_guest(argument: str, expected: str) -> None:
    message = refusal(lambda: resolve_guest(argument))
    assert expected in message
    assert "hello32" in message or argument == "."


def test_a_dangling_link_is_said_to_be_one(working_folder: Path) -> None:
    (working_folder / "link").symlink_to("gone")
    assert resolve_guest("link").kernel == Path("link")
    with pytest.raises(ValueError, match="link: no such file"):
        load_image("link")
