import java.math.BigInteger;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/** What a JVM's compilers, its garbage collector and its threads do, and faults that it makes exceptions of. The output is the same everywhere. */
public class Work {
    static class Item {
        Item next;
        int value;
        Item(Item next, int value) { this.next = next; this.value = value; }
    }

    static int sieve(int limit) {
        boolean[] composite = new boolean[limit + 1];
        int count = 0;
        for (int i = 2; i <= limit; i++) {
            if (composite[i]) continue;
            count++;
            for (long j = 2L * i; j <= limit; j += i) composite[(int) j] = true;
        }
        return count;
    }

    static String matrix(int size) {
        double[][] a = new double[size][size], b = new double[size][size];
        for (int y = 0; y < size; y++)
            for (int x = 0; x < size; x++) { a[y][x] = y * 0.5 + x; b[y][x] = x - y * 0.25; }
        double sum = 0;
        for (int y = 0; y < size; y++)
            for (int x = 0; x < size; x++)
                for (int k = 0; k < size; k++) sum += a[y][k] * b[k][x];
        return String.format("%.3f", sum);
    }

    static int garbage(int count) {
        Map<String, Integer> map = new HashMap<>();
        Item list = null;
        for (int i = 0; i < count; i++) {
            list = new Item(i % 1000 == 0 ? null : list, i);
            map.merge("key" + i % 777, list.value & 15, Integer::sum);
        }
        int sum = 0;
        for (Map.Entry<String, Integer> entry : new TreeMap<>(map).entrySet()) sum = sum * 31 + entry.getValue();
        return sum;
    }

    /** Null pointers, indices and divisors that are wrong only sometimes, so that compiled code meets them. */
    static int exceptions(int count) {
        int caught = 0;
        Item[] items = { new Item(null, 1), null, new Item(null, 0) };
        for (int i = 0; i < count; i++) {
            try {
                caught += 100 / items[i % 100 == 7 ? 1 : i % 100 == 9 ? 2 : i % 100 == 11 ? 3 : 0].value - 100;
            } catch (NullPointerException | ArithmeticException | ArrayIndexOutOfBoundsException e) {
                caught++;
            }
        }
        return caught;
    }

    static long threads() throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        AtomicLong total = new AtomicLong();
        ConcurrentHashMap<Integer, Long> shared = new ConcurrentHashMap<>();
        List<Future<Integer>> all = new ArrayList<>();
        for (int id = 0; id < 8; id++) {
            final int seed = id;
            all.add(pool.submit(() -> {
                for (int i = 0; i < 5000; i++) {
                    total.addAndGet(i ^ seed);
                    shared.merge(i % 64, 1L, Long::sum);
                }
                return sieve(10000 + seed);
            }));
        }
        long sum = 0;
        for (Future<Integer> one : all) sum += one.get();
        pool.shutdown();
        return sum * 1_000_000_007L + total.get() * 31 + shared.values().stream().mapToLong(Long::longValue).sum();
    }

    static String digest() throws Exception {
        byte[] text = "The quick brown fox jumps over the lazy dog. ".repeat(2000).getBytes("US-ASCII");
        byte[] sum = MessageDigest.getInstance("SHA-256").digest(text);
        return new BigInteger(1, sum).toString(16).substring(0, 16);
    }

    public static void main(String[] arguments) throws Exception {
        for (int round = Integer.parseInt(arguments[0]); round > 0; round--) {
            BigInteger factorial = IntStream.rangeClosed(1, 1000).mapToObj(BigInteger::valueOf).reduce(BigInteger.ONE, BigInteger::multiply);
            String words = IntStream.range(0, 2000).mapToObj(i -> Integer.toString(i * 7919 % 1000, 36)).distinct().sorted().collect(Collectors.joining());
            System.out.println("java " + sieve(200000) + " " + matrix(80) + " " + garbage(100000) + " " + exceptions(50000) + " "
                + threads() + " " + digest() + " " + factorial.bitLength() + " " + words.hashCode());
        }
    }
}
