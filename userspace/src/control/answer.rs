//! What the daemon does for each request of the API.

use anyhow::Context as _;

use super::{Daemon, Question, Then, change};
use crate::{
    api::{Announced, Request, Response, Status},
    config::{self, Config},
    loader::down,
};

impl Daemon {
    /// Does what is asked, and answers.
    pub(super) async fn answer(&mut self, question: Question) -> Then {
        let is_down = question.request == Request::Down;
        let result = self.handle(question.request).await;
        let then = if is_down && result.is_ok() {
            Then::Stop
        } else {
            Then::GoOn
        };
        let response = match result {
            Ok((message, data)) => Response {
                ok: true,
                message,
                data,
            },
            Err(error) => Response {
                ok: false,
                message: format!("{error:#}"),
                data: serde_json::Value::Null,
            },
        };
        if then == Then::Stop {
            // Gone before the answer: whoever waits for it may start the next daemon at once.
            let _ = std::fs::remove_file(&self.node.config().node.api);
            self.removed = true;
        }
        let _ = question.answer.send(response);
        if then == Then::Stop {
            // Lets the answer leave before the runtime ends.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        then
    }

    async fn handle(&mut self, request: Request) -> anyhow::Result<(String, serde_json::Value)> {
        let nothing = serde_json::Value::Null;
        let message = match request {
            Request::Status => return Ok((String::new(), serde_json::to_value(self.status()?)?)),
            Request::Reload => self.reload().await?,
            Request::Down => {
                let bpffs = self.node.config().node.bpffs.clone();
                let done = down::down(&bpffs, &mut self.netlink).await?;
                return Ok(("removed".to_owned(), serde_json::to_value(done)?));
            }
            Request::ArpAnnounce { vip } => {
                let done = self.announce(vip.as_deref())?;
                let message = format!("{} announced", done.len());
                return Ok((message, serde_json::to_value(done)?));
            }
            Request::DpiSessions { limit } => {
                let rows = self.session_rows(limit);
                return Ok((String::new(), serde_json::to_value(rows)?));
            }
            Request::DpiApps => {
                return Ok((String::new(), serde_json::to_value(self.heard.apps())?));
            }
            Request::DpiThreats => {
                return Ok((String::new(), serde_json::to_value(self.heard.threats())?));
            }
            Request::DpiMode { mode, save } => self.dpi_mode(mode, save).await?,
            Request::AclAdd(args) => self.edit(|c| change::acl_add(c, &args), "added").await?,
            Request::AclDel(args) => self.edit(|c| change::acl_del(c, &args), "removed").await?,
            Request::NatAdd(args) => self.edit(|c| change::nat_add(c, &args), "added").await?,
            Request::NatDel(args) => self.edit(|c| change::nat_del(c, &args), "removed").await?,
            Request::CfgSet {
                family,
                flag,
                on,
                save,
            } => {
                self.edit(|c| change::cfg_set(c, &family, &flag, on, save), "set")
                    .await?
            }
            Request::TraceAdd(args) => {
                self.edit(|c| change::trace(c, &args, true), "added")
                    .await?
            }
            Request::TraceDel(args) => {
                self.edit(|c| change::trace(c, &args, false), "removed")
                    .await?
            }
        };
        Ok((message, nothing))
    }

    fn announce(&self, vip: Option<&str>) -> anyhow::Result<Vec<Announced>> {
        let vip = vip.map(config::address).transpose()?;
        let list = self.announcer.announce(vip)?;
        anyhow::ensure!(
            vip.is_none() || !list.is_empty(),
            "there is no such virtual address; `nat list` shows those of e4lb"
        );
        let row = |vip: &crate::loader::vip::OnDevice| Announced {
            vip: vip.addr.to_string(),
            interface: vip.name.clone(),
            mac: vip.mac.map(|byte| format!("{byte:02x}")).join(":"),
        };
        Ok(list.into_iter().map(row).collect())
    }

    pub(super) async fn edit(
        &mut self,
        edit: impl FnOnce(&mut Config) -> Result<(), change::ChangeError>,
        done: &str,
    ) -> anyhow::Result<String> {
        let mut config = self.node.config().clone();
        edit(&mut config)?;
        self.change(config).await?;
        Ok(done.to_owned())
    }

    fn status(&self) -> anyhow::Result<Status> {
        let config = self.node.config();
        let settings = self.node.maps.settings().context("fsm_xcfg")?;
        Ok(Status {
            node: config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            config: self.path.clone(),
            config_hash: config.hash().to_owned(),
            generation: settings.generation,
            fail: config.node.fail.to_string(),
            mode: config.dpi.mode.to_string(),
            adopted: self.node.adopted,
            interfaces: self.node.interfaces(),
            workers: self.worker_rows(),
            original_dst: config.gateway.original_dst.clone(),
        })
    }
}
