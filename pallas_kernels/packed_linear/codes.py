"""Codes of quantized numbers: what the stored integers of a matrix stand for."""

from dataclasses import dataclass

_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# bitsandbytes orders its own 4-bit floats differently, and divides them by the largest.
_BNB_FP4 = tuple(value / 12 for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))


@dataclass(frozen=True, slots=True)
class Code:
    """Code of one number.

    bits: 4 or 8. dtype: of unpacked codes. table: float32 values of 4-bit codes; 8-bit codes are
    their own values.
    """

    bits: int
    dtype: str
    table: tuple[float, ...] = ()


def _four_bits(*table: float) -> Code:
    return Code(4, "uint8", table)


# In the order of linear.c.
CODES = {
    "uint4": _four_bits(*map(float, range(16))),
    "int4": _four_bits(*map(float, range(-8, 8))),
    # E2M1 (OCP Microscaling Formats 1.0, 2023).
    "fp4": _four_bits(*_FP4, *(-value for value in _FP4)),
    # Quantiles of a normal distribution (Dettmers et al., 2023, arXiv:2305.14314, appendix E).
    "nf4": _four_bits(
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
    "bnb_fp4": _four_bits(*_BNB_FP4, *(-value for value in _BNB_FP4)),
    "uint8": Code(8, "uint8"),
    "int8": Code(8, "int8"),
    # OCP 8-bit floating point, E4M3 (Micikevicius et al., 2022, arXiv:2209.05433).
    "e4m3": Code(8, "float8_e4m3fn"),
}
