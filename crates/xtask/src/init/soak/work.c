/* What a program asks of a processor and its kernel: integers of every size, strings, floating point, threads with storage of
   their own, processes and pipes, and faults that a handler repairs. The output is the same on every x86. */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static int primes(int limit) {
    char *composite = calloc(limit + 1, 1);
    int count = 0;
    for (int i = 2; i <= limit; i++) {
        if (composite[i]) continue;
        count++;
        for (int j = i + i; j <= limit; j += i) composite[j] = 1;
    }
    free(composite);
    return count;
}

/* Products, quotients, shifts and rotations of 64 bits, which take several instructions on 32-bit processors. */
static uint64_t integers(int count) {
    uint64_t state = 0x9e3779b97f4a7c15u, sum = 0;
    for (int i = 1; i <= count; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        sum += state / (unsigned)i + state % (unsigned)(i * 7 + 1);
        sum = (sum << (i & 63)) | (sum >> (-i & 63));
        sum ^= (uint64_t)((int64_t)state / (i * 3 - 100000));
    }
    return sum;
}

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static unsigned strings(int count) {
    char **all = malloc(count * sizeof *all);
    unsigned state = 1, sum = 0;
    for (int i = 0; i < count; i++) {
        char text[64];
        state = state * 1664525u + 1013904223u;
        snprintf(text, sizeof text, "%08x-%d-%s", state, i, state & 65536 ? "even" : "odd");
        all[i] = strdup(text);
    }
    qsort(all, count, sizeof *all, by_text);
    for (int i = 0; i < count; i++) {
        sum = sum * 31 + (unsigned)strtoul(all[i], NULL, 16) + strlen(strchr(all[i], '-'));
        free(all[i]);
    }
    free(all);
    return sum;
}

/* Rounded to what every kind of arithmetic agrees on. */
static void numbers(void) {
    double series = 0, product = 1, wave = 0;
    for (int i = 1; i <= 100000; i++) series += 1.0 / ((double)i * i);
    for (int i = 1; i <= 1000; i++) product *= 1.0 + 1.0 / (i * 1000.0);
    for (int i = 0; i < 20000; i++) wave += sin(i * 0.01) * exp(-i * 0.001) + sqrt(i) * 1e-6 + atan2(i, 3) * 1e-5;
    printf("numbers %.9f %.9f %.9f %.6Lf\n", series, product, wave, powl(1.0001L, 10000.0L));
}

static __thread unsigned own;
static unsigned total;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *thread(void *argument) {
    for (unsigned i = 0; i < 20000; i++) {
        own += i ^ (unsigned)(uintptr_t)argument;
        if (i % 100) continue;
        pthread_mutex_lock(&lock);
        total += 1;
        pthread_mutex_unlock(&lock);
        __atomic_fetch_add(&total, 1, __ATOMIC_SEQ_CST);
    }
    return (void *)(uintptr_t)own;
}

static void threads(void) {
    pthread_t all[4];
    unsigned sum = 0;
    for (uintptr_t i = 0; i < 4; i++) pthread_create(&all[i], NULL, thread, (void *)(i * 77));
    for (int i = 0; i < 4; i++) {
        void *result;
        pthread_join(all[i], &result);
        sum = sum * 3 + (unsigned)(uintptr_t)result;
    }
    printf("threads %u %u %u\n", sum, own, total >= 800 && total <= 1600);
}

static int processes(int count) {
    int ends[2], sum = 0;
    if (pipe(ends)) return -1;
    for (int i = 0; i < count; i++) {
        pid_t child = fork();
        if (child == 0) _exit(write(ends[1], &i, sizeof i) == sizeof i ? i & 63 : 99);
        int status, got = -1;
        if (read(ends[0], &got, sizeof got) != sizeof got || waitpid(child, &status, 0) != child) return -1;
        sum += got + (WIFEXITED(status) ? WEXITSTATUS(status) : 1000000);
    }
    return sum;
}

static char *area;
static volatile int faults;

static void open_page(int signal, siginfo_t *info, void *context) {
    char *page = (char *)((uintptr_t)info->si_addr & ~4095ul);
    (void)signal, (void)context;
    faults++;
    if (page < area || page >= area + 64 * 4096 || mprotect(page, 4096, PROT_READ | PROT_WRITE)) _exit(98);
}

static sigjmp_buf out;
static void leave(int signal) { siglongjmp(out, signal); }

/* Each page is opened by the fault of the first write to it; then a division by zero is left by a jump. */
static void signals(void) {
    struct sigaction action = {.sa_sigaction = open_page, .sa_flags = SA_SIGINFO};
    volatile int seven = 7, zero = 0;
    unsigned sum = 0;
    area = mmap(NULL, 64 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaction(SIGSEGV, &action, NULL);
    for (int i = 0; i < 64 * 4096; i += 16) area[i] += (char)(i >> 8);
    for (int i = 0; i < 64 * 4096; i++) sum += (unsigned char)area[i];
    signal(SIGFPE, leave);
    int caught = sigsetjmp(out, 1);
    if (caught == 0) printf("%d\n", seven / zero);
    printf("signals %d %u %d\n", faults, sum, caught == SIGFPE);
}

int main(void) {
    printf("primes %d\n", primes(1000000));
    printf("integers %llu\n", (unsigned long long)integers(100000));
    printf("strings %u\n", strings(20000));
    numbers();
    threads();
    printf("processes %d\n", processes(100));
    signals();
    return 0;
}
