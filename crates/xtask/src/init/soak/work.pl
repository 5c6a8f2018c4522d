# Hashes, regular expressions, sorting and numbers under an interpreter; the output is the same everywhere.
use strict;
use warnings;
my (%count, $state);
$state = 42;
for my $i (1 .. 20000) {
    $state = ($state * 1103515245 + 12345) % 2147483648;
    $count{ "w" . int($state / 65536) % 997 }++;
}
my @sorted = sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
my $matched = grep { /^w[1-3]\d*5$/ } @sorted;
my $text = join ",", map { "$_=$count{$_}" } @sorted;
$text =~ s/w(\d+)=(\d+)/$2*$1/g;
my $sum = 0;
$sum = ($sum * 31 + ord) % 1000003 for split //, $text;
printf "perl %d %d %d %.9f\n", scalar(@sorted), $matched, $sum, exp(sin(1) * log(10));
