# Floating-point arithmetic by an interpreter: bodies that attract each other.
import sys


def main(steps):
    bodies = [[float(i), 0.5 * i - 1.0, 0.25 * i * i, 0.01 * i, 0.02, -0.01 * i, 1.0 + 0.1 * i] for i in range(5)]
    pairs = [(a, b) for i, a in enumerate(bodies) for b in bodies[i + 1:]]
    for _ in range(steps):
        for a, b in pairs:
            x, y, z = a[0] - b[0], a[1] - b[1], a[2] - b[2]
            force = 0.001 / ((x * x + y * y + z * z + 0.01) ** 1.5)
            ma, mb = a[6] * force, b[6] * force
            a[3] -= x * mb
            a[4] -= y * mb
            a[5] -= z * mb
            b[3] += x * ma
            b[4] += y * ma
            b[5] += z * ma
        for body in bodies:
            body[0] += 0.001 * body[3]
            body[1] += 0.001 * body[4]
            body[2] += 0.001 * body[5]
    print(" ".join("%.12e" % value for body in bodies for value in body))


main(int(sys.argv[1]))
