//! What the server does in one step: the two scripts, and the keys that they touch.
//!
//! A change writes, raises the epoch, joins the bounded list of changes and is announced, all or
//! nothing: no node can see a row without being able to learn of it. Called by the store.

use std::sync::LazyLock;

use redis::{RedisError, Script, Value, from_redis_value_ref};

use crate::store::Mark;

/// The most changes that the list keeps: who asks for older ones reads everything anew.
pub(super) const CHANGES_KEPT: usize = 10_000;
/// The most changes of one answer.
const CHANGES_TOGETHER: usize = 1000;

/// Writes or deletes one field.
///
/// KEYS: rows, versions, uses, epoch, changes, channel. ARGV: what has to stand there (`any`, `exactly`,
/// `nothing`, `older`), or `delete`; field, value, version or 0, last use, name of the change, nonce,
/// changes to keep, the value that has to stand there exactly. Answers 1 where it was done.
pub(super) static CHANGE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local what, field, version, used = ARGV[1], ARGV[2], ARGV[4], ARGV[5]
local there = redis.call('HEXISTS', KEYS[1], field) == 1
local before = redis.call('HGET', KEYS[2], field)
if what == 'nothing' and there then return 0 end
if what == 'delete' and not there then return 0 end
if what == 'older' and not (there and before and tonumber(before) < tonumber(version)) then
  return 0
end
if what == 'exactly' and redis.call('HGET', KEYS[1], field) ~= ARGV[9] then return 0 end
if what == 'delete' then
  redis.call('HDEL', KEYS[1], field)
  redis.call('HDEL', KEYS[2], field)
  redis.call('HDEL', KEYS[3], field)
else
  redis.call('HSET', KEYS[1], field, ARGV[3])
  if version == '0' and there and before then version = before end
  redis.call('HSET', KEYS[2], field, version)
  local last = redis.call('HGET', KEYS[3], field)
  if not (there and last and tonumber(last) and tonumber(last) > tonumber(used)) then
    redis.call('HSET', KEYS[3], field, used)
  end
end
local epoch = redis.call('INCR', KEYS[4])
local change = string.format('%.0f %s %s', epoch, ARGV[7], ARGV[6])
redis.call('ZADD', KEYS[5], epoch, change)
redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -1 - tonumber(ARGV[8]))
redis.pcall('PUBLISH', KEYS[6], epoch)
return 1
",
    )
});

/// Notes last uses. KEYS: rows, uses. ARGV: field and time, over and over.
pub(super) static TOUCH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
for i = 1, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    local last = redis.call('HGET', KEYS[2], ARGV[i])
    if not (last and tonumber(last) and tonumber(last) > tonumber(ARGV[i + 1])) then
      redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    end
  end
end
return 1
",
    )
});

/// Lists what changed since an epoch. A server that is not a primary says nothing: a replica may have
/// been cut off from what happens, and a primary that was demoted answers for ever that nothing does.
///
/// KEYS: epoch, changes. ARGV: the epoch, the most changes. Answers the run of the server, its time
/// in milliseconds, the epoch now, the last change up to the epoch given, the last change of all, and
/// the changes after the epoch given.
pub(super) static CHANGES: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local role = redis.pcall('INFO', 'replication')
if type(role) ~= 'string' or not string.match(role, 'role:master') then
  return redis.error_reply('READONLY the server does not say that it is a primary')
end
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local epoch = redis.call('GET', KEYS[1]) or '0'
local at = redis.call('ZRANGEBYSCORE', KEYS[2], ARGV[1], ARGV[1])
local last = redis.call('ZRANGE', KEYS[2], -1, -1)
local after = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'LIMIT', 0, ARGV[2])
return {run, now, epoch, at[1] or '', last[1] or '', after}
",
    )
});

/// Returns how many changes are asked for at once.
pub(super) fn together() -> usize {
    CHANGES_TOGETHER
}

/// One line of the list of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) epoch: u64,
    pub(super) nonce: String,
    pub(super) name: String,
}

impl Line {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ' ');
        let line = Self {
            epoch: parts.next()?.parse().ok()?,
            nonce: parts.next()?.to_owned(),
            name: parts.next()?.to_owned(),
        };
        Some(line)
    }
}

/// What the server said of its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) run: String,
    pub(super) now: u64,
    epoch: u64,
    at: Option<Line>,
    last: Option<Line>,
    /// Nothing where a line is none of ours.
    after: Option<Vec<Line>>,
}

/// What follows from an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The names of what changed; nothing where only everything can be said.
    pub(super) names: Option<Vec<String>>,
    pub(super) mark: Mark,
    pub(super) is_partial: bool,
}

impl Answer {
    pub(super) fn read(value: &Value) -> Result<Self, RedisError> {
        type Raw = (String, u64, u64, String, String, Vec<String>);
        let (run, now, epoch, at, last, after): Raw = from_redis_value_ref(value)?;
        Ok(Self {
            run,
            now,
            epoch,
            at: Line::read(&at),
            last: Line::read(&last),
            after: after.iter().map(|line| Line::read(line)).collect(),
        })
    }

    /// Decides whether the list goes on where the mark stands: the same run of the server, the same
    /// change at that place, and every one since.
    pub(super) fn since(self, mark: Option<&Mark>) -> Verdict {
        let run = self.run;
        let everything = Verdict {
            names: None,
            mark: Mark {
                run: run.clone(),
                epoch: self.epoch,
                nonce: nonce(self.last.as_ref().filter(|last| last.epoch == self.epoch)),
            },
            is_partial: false,
        };
        let Some((mark, after)) = mark.zip(self.after) else {
            return everything;
        };
        let goes_on = mark.run == run
            && self.epoch >= mark.epoch
            && nonce(self.at.as_ref()) == mark.nonce
            && (1..)
                .zip(&after)
                .all(|(nth, line)| line.epoch.checked_sub(mark.epoch) == Some(nth));
        let reached = after.last().map_or(mark.epoch, |line| line.epoch);
        let is_partial = reached < self.epoch;
        // Fewer than were asked for, and yet not all: the list has lost its end.
        if !goes_on || (is_partial && after.len() < CHANGES_TOGETHER) {
            return everything;
        }
        let mark = Mark {
            run,
            epoch: reached,
            nonce: after
                .last()
                .map_or(mark.nonce.clone(), |line| line.nonce.clone()),
        };
        let names = after.into_iter().map(|line| line.name).collect();
        Verdict {
            names: Some(names),
            mark,
            is_partial,
        }
    }
}

fn nonce(line: Option<&Line>) -> String {
    line.map_or_else(String::new, |line| line.nonce.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(epochs: impl IntoIterator<Item = u64>) -> Vec<Line> {
        let line = |epoch| Line {
            epoch,
            nonce: format!("n{epoch}"),
            name: format!("c{epoch}"),
        };
        epochs.into_iter().map(line).collect()
    }

    /// What a server says that has the lines, of which as many are kept.
    fn answer(run: &str, kept: Vec<Line>, since: u64) -> Answer {
        Answer {
            run: run.to_owned(),
            now: 0,
            epoch: kept.last().map_or(0, |line| line.epoch),
            at: kept.iter().find(|line| line.epoch == since).cloned(),
            last: kept.last().cloned(),
            after: Some(
                kept.into_iter()
                    .filter(|line| line.epoch > since)
                    .take(CHANGES_TOGETHER)
                    .collect(),
            ),
        }
    }

    fn mark(epoch: u64) -> Mark {
        Mark {
            run: "r".to_owned(),
            epoch,
            nonce: if epoch == 0 {
                String::new()
            } else {
                format!("n{epoch}")
            },
        }
    }

    #[test]
    fn changes_follow_a_mark() {
        let verdict = answer("r", lines(1..=5), 3).since(Some(&mark(3)));
        assert_eq!(verdict.names, Some(vec!["c4".to_owned(), "c5".to_owned()]));
        assert_eq!((verdict.mark, verdict.is_partial), (mark(5), false));
        let verdict = answer("r", lines(1..=5), 5).since(Some(&mark(5)));
        assert_eq!((verdict.names, verdict.mark), (Some(vec![]), mark(5)));
        let verdict = answer("r", lines(1..=2), 0).since(Some(&mark(0)));
        assert_eq!(verdict.names.map(|names| names.len()), Some(2));
        let verdict = answer("r", vec![], 0).since(Some(&mark(0)));
        assert_eq!(verdict.names, Some(vec![]));
    }

    #[test]
    fn a_long_list_comes_in_parts() {
        let verdict = answer("r", lines(1..=2500), 0).since(Some(&mark(0)));
        assert_eq!(verdict.names.map(|names| names.len()), Some(1000));
        assert_eq!((verdict.mark, verdict.is_partial), (mark(1000), true));
    }

    #[test]
    fn what_does_not_follow_is_everything() {
        let mut forked = lines(1..=6);
        forked[2].nonce = "another".to_owned();
        let mut gap = lines(1..=6);
        gap.remove(4);
        for (case, answer) in [
            ("another run", answer("s", lines(1..=6), 3)),
            ("a smaller epoch", answer("r", lines(1..=2), 3)),
            ("another history", answer("r", forked, 3)),
            ("trimmed past the mark", answer("r", lines(5..=6), 3)),
            ("the mark alone trimmed", answer("r", lines(4..=6), 3)),
            ("a gap", answer("r", gap, 3)),
            (
                "nothing is left",
                Answer {
                    epoch: 6,
                    ..answer("r", vec![], 3)
                },
            ),
            (
                "the end is lost",
                Answer {
                    epoch: 9,
                    ..answer("r", lines(1..=6), 3)
                },
            ),
            (
                "a strange line",
                Answer {
                    after: None,
                    ..answer("r", lines(1..=6), 3)
                },
            ),
        ] {
            let verdict = answer.clone().since(Some(&mark(3)));
            assert_eq!(verdict.names, None, "{case}");
            assert_eq!(verdict.mark.epoch, answer.epoch, "{case}");
        }
        assert_eq!(answer("r", lines(1..=6), 0).since(None).names, None);
    }

    #[test]
    fn an_epoch_that_was_written_by_hand_is_no_reason_to_panic() {
        for (kept, since) in [(u64::MAX, u64::MAX), (u64::MAX, 3), (3, u64::MAX)] {
            let answer = Answer {
                after: Some(lines([kept])),
                ..answer("r", lines([since]), since)
            };
            assert_eq!(answer.since(Some(&mark(since))).names, None);
        }
    }

    #[test]
    fn a_list_that_is_gone_is_read_once_and_not_for_ever() {
        let gone = |epoch| Answer {
            epoch,
            ..answer("r", vec![], epoch)
        };
        let first = gone(6).since(Some(&mark(6)));
        assert_eq!(first.names, None);
        assert_eq!(gone(6).since(Some(&first.mark)).names, Some(vec![]));
    }
}
