"""The symbol table that NetBSD and FreeBSD kernels want behind their image (note BSD_SYMTAB).

Laid out as libelf does since Xen 4.7 (xen/common/libelf/libelf-loader.c, elf_load_bsdsyms): a 32-bit size, then a small
ELF file of its own with three sections: none, the symbols, their names.
"""

from __future__ import annotations

import struct

from .elf_format import SHT_STRTAB, SHT_SYMTAB, ElfFile


def bsd_symbol_segment(elf: ElfFile, image_end: int) -> tuple[int, bytes] | None:
    """The physical address and the bytes of the symbol table to be loaded behind an image that ends at `image_end`.

    None for a stripped kernel: libelf then loads nothing, and so the kernel starts without symbols.
    """
    sections = elf.sections()
    symbols = next((s for s in sections if s.type == SHT_SYMTAB), None)
    if symbols is None or symbols.link >= len(sections) or sections[symbols.link].type != SHT_STRTAB:
        return None
    wide = elf.width == 64
    word = 8 if wide else 4
    symbol_bytes, name_bytes = elf.section_bytes(symbols), elf.section_bytes(sections[symbols.link])
    header_size, section_size = (64, 64) if wide else (52, 40)
    # offsets inside the small file count from its ELF header, which follows the size
    symbols_at = _round_up(4 + header_size + 3 * section_size, word) - 4
    names_at = _round_up(4 + symbols_at + len(symbol_bytes), word) - 4
    end = _round_up(4 + names_at + len(name_bytes), word)
    out = bytearray(end)
    struct.pack_into("<I", out, 0, end - 4)
    out[4 : 4 + header_size] = _header(elf, header_size, section_size)
    layout, entry_size = ("<IIQQQQIIQQ", 24) if wide else ("<IIIIIIIIII", 16)
    headers = 4 + header_size
    symbol_header = (0, SHT_SYMTAB, 0, 0, symbols_at, len(symbol_bytes), 2, 0, word, entry_size)
    struct.pack_into(layout, out, headers + section_size, *symbol_header)
    struct.pack_into(
        layout, out, headers + 2 * section_size, 0, SHT_STRTAB, 0, 0, names_at, len(name_bytes), 0, 0, 1, 0
    )
    out[4 + symbols_at : 4 + symbols_at + len(symbol_bytes)] = symbol_bytes
    out[4 + names_at : 4 + names_at + len(name_bytes)] = name_bytes
    return _round_up(image_end, word), bytes(out)


def _header(elf: ElfFile, header_size: int, section_size: int) -> bytes:
    """The kernel's ELF header, changed to have no segments and three sections right behind it."""
    header = bytearray(elf.slice(0, header_size, "the ELF header"))
    if elf.width == 64:
        struct.pack_into("<QQ", header, 32, 0, header_size)
    else:
        struct.pack_into("<II", header, 28, 0, header_size)
    struct.pack_into("<HHHHH", header, header_size - 10, 0, 0, section_size, 3, 0)
    return bytes(header)


def _round_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
