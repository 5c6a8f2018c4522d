# Words counted, matched, rewritten and sorted, as scripts do.
use strict;
use warnings;
my ($state, %count, @lines, $sum) = (12345);
for my $line (1 .. $ARGV[0]) {
    my @words;
    for (1 .. 12) {
        $state = ($state * 1103515245 + 12345) & 0x7fffffff;
        push @words, "w" . ($state >> 8) % 997;
    }
    my $text = join " ", @words;
    $count{$_}++ for split / /, $text;
    $text =~ s/w(\d)(\d+)/$2-$1/g;
    push @lines, $text if $text =~ /7-\d .*\b3\d-/;
}
$sum = 0;
for my $word (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count) {
    $sum = ($sum * 33 + $count{$word} + length $word) & 0xffffffff;
}
$sum = ($sum * 33 + $_) & 0xffffffff for map { unpack "%32C*", $_ } sort @lines;
print scalar(keys %count), " ", scalar(@lines), " $sum\n";
