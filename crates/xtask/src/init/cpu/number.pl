# Floating-point arithmetic by an interpreter: points of the Mandelbrot set.
use strict;
use warnings;
my ($size, $inside, $steps) = ($ARGV[0], 0, 0);
for my $row (0 .. $size - 1) {
    my $b = 2.0 * $row / $size - 1.0;
    for my $column (0 .. $size - 1) {
        my $a = 3.0 * $column / $size - 2.0;
        my ($x, $y, $n) = (0.0, 0.0, 0);
        while ($n < 50) {
            my ($xx, $yy) = ($x * $x, $y * $y);
            last if $xx + $yy > 4.0;
            $y = 2.0 * $x * $y + $b;
            $x = $xx - $yy + $a;
            $n++;
        }
        $inside++ if $n == 50;
        $steps += $n;
    }
}
print "$inside $steps\n";
