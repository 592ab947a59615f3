-- For each number that is an argument, or else comes as a line: loops that are compiled while they run, errors, coroutines, strings. The same answer each time.
local function fib(n)
  if n < 2 then return n end
  return fib(n - 1) + fib(n - 2)
end

io.stdout:setvbuf('line')
if not arg[1] then print('ready') end
for line in arg[1] and arg[1]:gmatch('%d+') or io.lines() do
  local sum, words, caught = 0, {}, 0
  for i = 1, tonumber(line) do
    sum = sum + i % 7
    words[i % 100 + 1] = string.format('%d:%s', i, tostring(i):rep(3))
    if i % 100 == 0 and not pcall(error, 'thrown') then caught = caught + 1 end
  end
  local next_one = coroutine.wrap(function() for i = 1, 100 do coroutine.yield(i) end end)
  for _ = 1, 100 do sum = sum + next_one() end
  table.sort(words)
  print(fib(20), sum, caught, #table.concat(words))
end
