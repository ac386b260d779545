//! What is asked of durable work: each wish is ruled by its own rule, and runs decide on what follows.
//!
//! Invariants:
//! - a wish and all that follows from it are one commit.

use crate::{
    event::Role,
    ledger::{
        claims::{Ruled, worked},
        commit::{By, Stop, payload_ref},
        work::{Wish, Work, Worked},
        world::World,
    },
};

impl World {
    /// Rules a wish and carries out what runs decide on it.
    pub(super) fn work(&mut self, work: Work) -> Result<Ruled, Stop> {
        let Work { wish, actor, cause, note } = work;
        let note_ref = note.as_ref().map(|note| payload_ref(note, Role::Note));
        self.commit.store(note);
        let by = By { cause, note: note_ref, ..By::new(actor) };
        if let Wish::Claim(claim) = wish {
            return claim.rule(self, by);
        }
        let answer = wish.rule(self, &by)?;
        self.advance()?;
        Ok(Ruled::Now(worked(answer)))
    }
}

impl Wish {
    fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        match self {
            Wish::SubmitTask(submit) => submit.rule(world, by),
            Wish::Claim(_) => Ok(Worked::Claimed(Vec::new())),
            Wish::Look(look) => look.rule(world),
            Wish::GiveBack(back) => back.rule(world, by),
            Wish::Check(check) => Ok(check.rule(world)),
            Wish::Renew(renew) => renew.rule(world, by),
            Wish::Complete(complete) => complete.rule(world, by),
            Wish::Fail(fail) => fail.rule(world, by),
            Wish::CancelTask(cancel) => cancel.rule(world, by),
            Wish::Reprioritise(reprioritise) => reprioritise.rule(world, by),
            Wish::RetryTask(retry) => retry.rule(world, by),
            Wish::PauseQueue => world.pause(true, by),
            Wish::ResumeQueue => world.pause(false, by),
            Wish::ClearQueue(clear) => clear.rule(world, by),
            Wish::RegisterWorker(register) => register.rule(world, by),
            Wish::UnregisterWorker(unregister) => unregister.rule(world, by),
            Wish::SubmitRun(new) => world.submit_run(*new, by),
            Wish::CancelRun(cancel) => cancel.rule(world, by),
            Wish::ForkRun(fork) => fork.rule(world, by),
            Wish::RescheduleRun(reschedule) => reschedule.rule(world, by),
            Wish::Signal(signal) => signal.rule(world, by),
            Wish::Replayed(replayed) => replayed.rule(world, by),
            Wish::CreateSchedule(create) => create.rule(world, by),
            Wish::DeleteSchedule(delete) => delete.rule(world, by),
        }
    }
}
