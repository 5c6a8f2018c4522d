.bail on
CREATE TABLE part(id INTEGER PRIMARY KEY, name TEXT, size INTEGER, price REAL);
BEGIN;
INSERT INTO part
  WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < AMOUNT)
  SELECT i, printf('part-%d', (i * 7919) % 100003), (i * 31) % 1000, i * 0.37 FROM n;
CREATE INDEX by_name ON part(name);
CREATE INDEX by_size ON part(size);
UPDATE part SET price = price * 1.1 WHERE size BETWEEN 100 AND 300;
DELETE FROM part WHERE name LIKE '%77';
COMMIT;
SELECT count(*), sum(size), printf('%.3f', sum(price)) FROM part;
SELECT a.size, count(*), max(b.name) FROM part a JOIN part b ON b.id = a.id / 2 + 1 GROUP BY a.size ORDER BY 2 DESC, 1 LIMIT 20;
SELECT substr(name, 1, 7) AS stem, count(*), min(size) FROM part GROUP BY stem ORDER BY stem LIMIT 50;
PRAGMA integrity_check;
