"""Write operations of AVX-512 that the compiler does not find in a loop, in the form that LLVM takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

LANES = 16  # numbers of 32 bits in a register
WORD = 4  # bytes of such a number: a float32, or two neighbours in bfloat16


class _BFloat(ir.types.Type):  # type: ignore[misc]
    """LLVM's bfloat16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


INT, LONG, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
INTS, FLOATS = ir.VectorType(INT, LANES), ir.VectorType(FLOAT, LANES)
HALVES = ir.VectorType(ir.IntType(16), LANES)
PAIRS = ir.VectorType(_BFloat(), 2 * LANES)
Values = list[ir.Value]


class Writer:
    """Loops, loads and calls. Addresses are 64-bit integers."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def loop(self, count: ir.Value, begin: Sequence[ir.Value], body: Callable[[ir.Value, Values], Values]) -> Values:
        """Run `body(i, values)`, which returns the next values, for i from 0 up to `count`; return the last values."""
        builder, before = self.builder, self.builder.block
        head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(LONG)
        values = [builder.phi(value.type) for value in begin]
        builder.cbranch(builder.icmp_signed("<", i, count), inside, after)
        builder.position_at_end(inside)
        following = [builder.add(i, LONG(1)), *body(i, values)]
        builder.branch(head)
        for phi, first, then in zip([i, *values], [LONG(0), *begin], following, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(then, builder.block)
        builder.position_at_end(after)
        return values

    def at(self, first: ir.Value, place: ir.Value, width: int) -> ir.Value:
        return self.builder.add(first, self.builder.mul(place, LONG(width)))

    def spread(self, address: ir.Value, kind: ir.Type) -> ir.Value:
        """Load a number into all lanes."""
        number = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=1)
        vector = ir.Constant(ir.VectorType(kind, LANES), ir.Undefined)
        first = self.builder.insert_element(vector, number, INT(0))
        return self.builder.shuffle_vector(first, vector, ir.Constant(INTS, [0] * LANES))

    def load(self, address: ir.Value, kind: ir.Type) -> ir.Value:
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=WORD)

    def store(self, floats: ir.Value, address: ir.Value) -> None:
        self.builder.store(floats, self.builder.inttoptr(address, FLOATS.as_pointer()), align=WORD)

    def fetch(self, address: ir.Value) -> None:
        """Ask for the cache line at an address, which may be any number, before it is read."""
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, INT, INT, INT])
        function = self.builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        reads, nearness, is_data = INT(0), INT(2), INT(1)
        self.builder.call(function, [self.builder.inttoptr(address, pointer), reads, nearness, is_data])

    def add_floats(self, sums: ir.Value, x: ir.Value, weights: ir.Value) -> ir.Value:
        """Return `sums` plus the products of numbers, each with one rounding."""
        return self._call("llvm.fma.v16f32", FLOATS, [x, weights, sums])

    def add_pairs(self, sums: ir.Value, x: ir.Value, weights: ir.Value) -> ir.Value:
        """Return `sums` plus the products of two neighbours in bfloat16, by AVX512-BF16."""
        pairs = [self.builder.bitcast(words, PAIRS) for words in (x, weights)]
        return self._call("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, [sums, *pairs])

    def add_quads(self, sums: ir.Value, x: ir.Value, weights: ir.Value) -> ir.Value:
        """Return `sums` plus the products of four signed bytes and four unsigned ones, by AVX512-VNNI."""
        return self._call("llvm.x86.avx512.vpdpbusd.512", INTS, [sums, weights, x])

    def _call(self, name: str, result: ir.Type, arguments: Values) -> ir.Value:
        kinds = [argument.type for argument in arguments]
        function = self.builder.module.declare_intrinsic(name, (), ir.FunctionType(result, kinds))
        return self.builder.call(function, arguments)
