"""The sequence of writes of a vCPU, written down again in plain Python."""

import math
from hashlib import blake2b

MASK = (1 << 64) - 1
PAGE = 4096


class Random:
    """SplitMix64, one number after the other."""

    def __init__(self, seed, vcpu=0, phase=0):
        digest = blake2b(f"{seed}/{vcpu}/{phase}".encode(), digest_size=8).digest()
        self.state = int.from_bytes(digest, "little")

    def draw(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
        return z ^ (z >> 31)

    def page(self, first, n):
        """Byte offset of a word: the page from the product's high half, the word from its low."""
        page, fraction = divmod(self.draw() * n, 1 << 64)
        return (first + page) * PAGE + (fraction >> 55) * 8

    def rank(self, theta, n):
        """Rejection-inversion by the textbook's formula, for theta other than 1."""

        def integral(x):
            return (x ** (1 - theta) - 1) / (1 - theta)

        def inverse(y):
            return (1 + y * (1 - theta)) ** (1 / (1 - theta))

        low, high = integral(1.5) - 1, integral(n + 0.5)
        while True:
            r = self.draw()
            y = high + (r >> 11) / 2**53 * (low - high)
            k = min(max(math.floor(inverse(y) + 0.5), 1), n)
            if y >= integral(k + 0.5) - k**-theta:
                return k, r & 511


def uniform(random, n):
    while True:
        yield random.page(0, n)


def hotcold(random, n, hot, hits):
    while True:
        if random.draw() < hits * 2**64:
            yield random.page(0, hot)
        else:
            yield random.page(hot, n - hot)


def sweep(random, n):
    while True:
        for vfn in range(n):
            yield random.page(vfn, 1)


def golden_stride(n):
    stride = round(n * (5**0.5 - 1) / 2)
    while math.gcd(stride, n) != 1:
        stride += 1
    return stride


def zipf(random, n, theta):
    stride = golden_stride(n)
    while True:
        rank, word = random.rank(theta, n)
        yield (rank - 1) * stride % n * PAGE + word * 8


def kv(random, store, theta, mix):
    """Byte offsets; a read's is negative (minus one, too, for 0 has no sign)."""
    at = [int(x) for x in store.item_at]
    free = [int(x) for x in store.free_at]
    n = len(at)
    stride, newest = golden_stride(n), n - 1
    reads = {"A": 0.5, "B": 0.95, "C": 1, "D": 0.95, "F": 0.5}[mix]

    def update(key):
        size_class, length = int(store.item_class[key]), int(store.item_bytes[key])
        old, at[key] = at[key], free[size_class]
        free[size_class] = old
        yield at[key]
        next_page = at[key] // PAGE * PAGE + PAGE
        yield from range(next_page, at[key] + length, PAGE)
        yield old

    while True:
        read = random.draw() < reads * 2**64
        if mix == "D" and not read:
            newest = (newest + 1) % n
            yield from update(newest)
            continue
        rank, _ = random.rank(theta, n)
        key = (newest - (rank - 1)) % n if mix == "D" else (rank - 1) * stride % n
        if read or mix == "F":
            yield -1 - at[key]
        if not read:
            yield from update(key)


def hotcold_all(random, n):
    """All pages are hot: the choice is drawn and changes nothing."""
    while True:
        random.draw()
        yield random.page(0, n)
