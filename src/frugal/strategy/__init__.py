"""How several processes train one network: `strategy=`."""
