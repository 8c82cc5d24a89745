//! What modules say of themselves, taken into the head.

use pipedoc_model::registry::{ModuleInfo, Modules};

use super::Editor;
use crate::catalog::Head;
use crate::store::{self, Error};

impl Editor {
    /// Notes what a module says of itself that the store is known to hold.
    pub(crate) fn remember(&self, info: &ModuleInfo) {
        let mut registered = self.registered.lock();
        if registered.get(&info.module) != Some(info) {
            registered.insert(info.module.clone(), info.clone());
        }
    }

    /// Takes a module's registration in when it is new or another one. Older
    /// versions than the known one change nothing. Tells whether anything did.
    pub(crate) async fn register(&self, info: &ModuleInfo) -> store::Result<bool> {
        self.registered.lock().insert(info.module.clone(), info.clone());
        let mut written = None;
        loop {
            let current = self.catalog.head().await?;
            let known = match &current {
                Some(current) => current.head.modules.get(&info.module).copied(),
                None => self.catalog.newest_modules().await?.get(&info.module).copied(),
            };
            if let Some(number) = known
                && let Some(known) = self.catalog.module(&info.module, number).await?
                && (known == *info || precedence(&known.version) > precedence(&info.version))
            {
                return Ok(false);
            }
            let number = match written {
                Some(number) => number,
                None => *written.insert(self.catalog.add_module(info).await?),
            };
            let Some(current) = current else {
                if self.catalog.head().await?.is_some() {
                    // Made meanwhile, perhaps by somebody who did not find the registration yet.
                    continue;
                }
                // No head is no news; whoever makes one finds the registration.
                return Ok(true);
            };
            let mut next = self.next(Some(&current)).await?;
            next.modules.insert(info.module.clone(), number);
            match self.catalog.set_head(Some(&current), &next, None).await {
                Ok(()) => {
                    tracing::info!(module = %info.module, version = info.version, generation = %next.generation, "registered");
                    return Ok(true);
                }
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Registers again what a store has lost: modules that attached here and that the
    /// head does not know. Tells whether there were any.
    pub(crate) async fn register_lost(&self, head: &Head) -> store::Result<bool> {
        let lost: Vec<_> = {
            let registered = self.registered.lock();
            registered.values().filter(|info| !head.modules.contains_key(&info.module)).cloned().collect()
        };
        let mut any = false;
        for info in lost {
            any |= self.register(&info).await?;
        }
        Ok(any)
    }

    /// What is known of modules: what the head names, and what attached here.
    pub(super) async fn modules(&self, head: Option<&Head>) -> store::Result<Modules> {
        let numbers = match head {
            Some(head) => head.modules.clone(),
            None => self.catalog.newest_modules().await?,
        };
        let mut modules = self.registered.lock().clone();
        for (name, number) in numbers {
            if let Some(info) = self.catalog.module(&name, number).await? {
                modules.insert(name, info);
            }
        }
        Ok(modules)
    }
}

/// Order of versions as semver has it, as far as it matters here: three numbers,
/// and a pre-release before its release. What cannot be read comes first.
fn precedence(version: &str) -> (u64, u64, u64, bool) {
    let version = version.split('+').next().unwrap_or_default();
    let (numbers, pre) = version.split_once('-').map_or((version, ""), |(numbers, pre)| (numbers, pre));
    let mut numbers = numbers.split('.').map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next(), pre.is_empty())
}

#[cfg(test)]
mod tests {
    use super::precedence;

    #[test]
    fn versions_are_ordered_as_semver_has_it() {
        let rising = ["0.9.9", "0.10.0-rc1", "0.10.0", "1.0.0+build", "1.2.3"];
        assert!(rising.windows(2).all(|pair| precedence(pair[0]) < precedence(pair[1])));
    }
}
