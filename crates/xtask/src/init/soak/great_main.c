/* Calls functions of the generated file beside it, with many arguments. */
#include <stdio.h>
unsigned f10(unsigned, unsigned), f50(unsigned, unsigned), f99(unsigned, unsigned);
int main(void) {
    for (unsigned i = 0; i < 200; i++) printf("%u %u %u\n", f10(i * 7, i), f50(i, i * 3), f99(i * i, i));
    return 0;
}
