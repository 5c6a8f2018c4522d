# Dictionaries and strings, as programs in Python use them most.
import sys


def words(count):
    state = 12345
    for _ in range(count):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        yield "w%d" % ((state >> 8) % 4999)


def main(lines):
    count, places = {}, {}
    source = words(lines * 10)
    for number in range(lines):
        text = " ".join(next(source) for _ in range(10))
        for word in text.upper().split():
            count[word] = count.get(word, 0) + 1
            places.setdefault(word[:3], []).append(number)
        if text.startswith("w9"):
            count[text.replace("w", "v")[:8]] = len(text)
    total = 0
    for word, times in sorted(count.items(), key=lambda pair: (-pair[1], pair[0])):
        for letter in word:
            total = (total * 31 + ord(letter) + times) & 0xFFFFFFFF
    print(len(count), sum(len(set(some)) for some in places.values()), total)


main(int(sys.argv[1]))
