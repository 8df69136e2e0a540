use super::*;
use crate::group::Deadlines;
use crate::rank::WorldSize;

/// At which of `steps` steps of this length there is a question, by the coordinator's clock.
fn questions(length: impl Fn(u64) -> Duration, steps: u64) -> Vec<u64> {
    let (mut poll, mut now) = (Poll::default(), Instant::now());
    let mut asks = |step: u64| {
        now += length(step);
        let is_due = poll.is_due();
        if is_due {
            let answer = poll.answer(now);
            poll.take(answer, now);
        }
        is_due
    };
    (1..=steps).filter(|step| asks(*step)).collect()
}

#[test]
fn the_first_step_asks_and_then_about_every_quarter_of_a_second() {
    let millisecond = Duration::from_millis(1);
    let asked = questions(|_| millisecond, 2000);
    assert_eq!(asked[..6], [1, 2, 4, 8, 16, 32]);
    let pauses: Vec<u64> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses[8..], [250; 6]);
}

#[test]
fn slow_steps_ask_each_time_and_fast_ones_at_least_every_thousandth() {
    assert_eq!(questions(|_| Duration::from_secs(2), 5), [1, 2, 3, 4, 5]);
    let asked = questions(|_| Duration::ZERO, 10_000);
    assert_eq!(asked.windows(2).map(|pair| pair[1] - pair[0]).max(), Some(1000));
}

#[test]
fn steps_that_become_slow_are_asked_more_often_from_the_next_question_on() {
    let length = |step| Duration::from_millis(if step <= 1000 { 1 } else { 100 });
    let asked = questions(length, 1400);
    let late: Vec<u64> = asked.iter().copied().filter(|step| *step > 1000).collect();
    assert!(late.len() > 50, "{late:?}");
    assert!(late[1..].windows(2).all(|pair| pair[1] - pair[0] <= 2 * 2), "{late:?}");
}

#[test]
fn an_answer_that_no_coordinator_gives_does_no_harm() {
    let mut poll = Poll::default();
    poll.take(0, Instant::now());
    assert!(poll.is_due());
    assert_eq!(poll.answer(Instant::now()), 1);
    poll.take(u32::MAX, Instant::now());
    assert_eq!(poll.answer(Instant::now()), STEPS_MAX);
}

/// A watch that is due, but on `rank` alone: ranks that are threads share signals.
fn told(group: &ProcessGroup, rank: u32) -> Watch {
    let is_told = group.rank().get() == rank;
    let time_limit = is_told.then(|| super::super::TimeLimit::at(Duration::ZERO));
    Watch { signals: None, time_limit, is_active: true }
}

#[test]
fn what_one_rank_is_told_all_ranks_hear_after_the_same_step() {
    let deadlines = Deadlines { progress: Duration::from_secs(20), ..Deadlines::default() };
    let groups = ProcessGroup::threads(WorldSize::new(3).unwrap(), deadlines);
    let ranks = groups.into_iter().map(|group| {
        std::thread::spawn(move || {
            let mut schedule = Poll::default();
            let (quiet, told) = (Watch::default(), told(&group, 2));
            for step in 1..100_u32 {
                // Told while others are at another step, between two questions.
                let watch = if step < 20 + group.rank().get() { &quiet } else { &told };
                let on_coordinator = || group.is_coordinator();
                let answer =
                    poll(&group, &mut schedule, watch, Duration::ZERO, on_coordinator).unwrap();
                assert!(!answer.minutes_due || schedule.left + 1 == schedule.steps);
                if let Some(reason) = answer.preempted {
                    return (step, reason);
                }
            }
            panic!("never told");
        })
    });
    let ranks: Vec<_> = ranks.collect();
    let ends: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
    assert!((22..100).contains(&ends[0].0), "{ends:?}");
    assert!(ends.iter().all(|end| *end == (ends[0].0, Preempted::TimeLimit)), "{ends:?}");
}
