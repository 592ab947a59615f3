create table squares(n integer primary key, square integer, word text);
with recursive c(n) as (select 1 union all select n + 1 from c where n < 3000)
  insert into squares select n, n * n, printf('word %d', n % 17) from c;
create index by_word on squares(word, square);
begin;
update squares set word = upper(word) where n % 5 = 0;
rollback;
select count(*), sum(square), max(word) from squares;
select word, count(*), avg(n) from squares group by word order by 2 desc, 1 limit 4;
select group_concat(n, ' ') from (select n from squares where word like 'word 3' order by square desc limit 6);
select a.n, b.n from squares a join squares b on a.square = b.n order by 1 desc limit 3;
select json_extract('{"a":[1,2,{"b":3}]}', '$.a[2].b'), hex(zeroblob(4)), round(1.0 / 3, 4);
select no_such_column from squares;
