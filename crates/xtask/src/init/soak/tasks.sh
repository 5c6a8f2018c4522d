# What the guests of `cargo xtask soak` do: task_NAME writes what is checked, and ends with a code other than 0 where it failed.

# Workers of several kinds at once, each of which checks its own results.
task_stress() {
  stress-ng --cpu 2 --vm 2 --fork 2 --switch 2 --mmap 2 --verify --timeout "$seconds" --metrics-brief
}

# Compiles a program at several levels of optimization, and runs what came of it; with `umbra.long`, a great one too.
task_gcc() {
  for level in -O0 -O2; do
    echo "gcc $level" &&
    gcc-12 $level -o work /soak/work.c -lm &&
    ./work || return 1
  done
  [ -n "$long" ] || return 0
  for level in -O0 -O1 -O2 -O3; do
    gcc-12 $level -c -o great.o /soak/great.c &&
    gcc-12 -o great /soak/great_main.c great.o &&
    ./great > great$level || return 1
    cmp great-O0 great$level || return 1
  done
  echo "great $(wc -l < great-O0)"
}

# A JIT: JavaScript in one thread, in four, and WebAssembly.
task_node() {
  rounds=1
  [ -z "$long" ] || rounds=40
  node /soak/work.js $rounds
}

# A JVM runs a Java compiler, and then what it compiled.
task_java() {
  java=/usr/lib/jvm/java-17-openjdk-amd64/bin/java
  rounds=1
  [ -z "$long" ] || rounds=10
  $java -version &&
  $java -XX:-UsePerfData -cp /usr/share/java/ecj.jar org.eclipse.jdt.internal.compiler.batch.Main -11 -proc:none -d . /soak/Work.java &&
  $java -XX:-UsePerfData -cp . Work $rounds
}

# User programs of a 32-bit system: the compiler, what it makes with x87 and with SSE arithmetic, an interpreter, a shell.
task_i386() {
  echo "machine $(uname -m), pointers $(getconf LONG_BIT)" || return 1
  for arithmetic in "-mfpmath=387" "-msse2 -mfpmath=sse"; do
    echo "gcc $arithmetic" &&
    gcc-12 -O2 $arithmetic -o work /soak/work.c -lm &&
    ./work || return 1
  done
  perl /soak/work.pl || return 1
  [ -n "$long" ] || return 0
  stress-ng --cpu 2 --vm 1 --fork 1 --mmap 1 --verify --timeout 60
}
